"""Search by Faiss gives what float64 brute force gives, in whatever blocks it is done."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import clumps, exact_cosines

from curate.neighbours import search
from curate.neighbours.heads import heads
from curate.neighbours.search import (
    Searchable,
    cosine,
    nearest,
    neighbours,
    principal_axes,
    spherical_kmeans,
    top_k,
    unit,
)

SOME = settings(max_examples=25, deadline=None)
BLOCKS = st.fixed_dictionaries(
    {
        "BASE_ROWS": st.integers(1, 40),
        "QUERY_ROWS": st.integers(1, 40),
        "PAIRS_AT_ONCE": st.integers(1, 500),
    }
)


def searchable(vectors, axes=None, first=0):
    numbers = np.arange(len(vectors)) + first
    return Searchable(vectors, numbers, None if axes is None else heads(vectors, axes))


def pairs_of(queries, base, threshold, axes=None):
    rows = np.arange(len(queries))
    found = list(
        neighbours(searchable(queries, axes, first=10**9), rows, searchable(base, axes), threshold)
    )
    pairs = [pair for rows, others in found for pair in zip(rows, others, strict=True)]
    assert len(set(pairs)) == len(pairs)
    return {(int(row), int(other)) for row, other in pairs}


def small_blocks(monkeypatch, blocks):
    for name, value in blocks.items():
        monkeypatch.setattr(search, name, value)


def stored(seed, count, dim=6, spread=0.5):
    return clumps(seed, max(1, count // 5), 5, dim, spread)[:count].astype(np.float16)


def test_the_cosine_of_a_vector_with_itself_is_never_above_one():
    vectors = np.random.default_rng(0).standard_normal((4000, 48)).astype(np.float16)
    raw = vectors.astype(np.float32) / np.linalg.norm(vectors.astype(np.float32), axis=1)[:, None]
    half = raw.astype(np.float16).astype(np.float32)
    assert (np.einsum("nd,nd->n", half, half) > 1).any()
    units = unit(half)
    assert cosine(units, units).max() <= 1
    assert cosine(units, units).min() >= 1 - 1e-6
    assert cosine(units, -units).min() >= -1
    assert top_k(half, half[:1], 1)[0].max() <= 1


def test_zero_vectors_never_give_nan():
    vectors = stored(1, 30)
    vectors[[0, 7]] = 0
    units = unit(vectors)
    assert not units[[0, 7]].any()
    assert np.isfinite(units).all()
    assert np.isfinite(cosine(units, units[::-1])).all()
    similarity, rows = top_k(vectors, vectors, 3)
    assert np.isfinite(similarity).all()
    assert rows[0].tolist() == [0, 1, 2]
    assert not any(0 in pair or 7 in pair for pair in pairs_of(units, units, 0.1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_unit_does_not_depend_on_the_scale(dtype):
    vectors = np.random.default_rng(2).standard_normal((50, 33)).astype(dtype)
    np.testing.assert_allclose(np.linalg.norm(unit(vectors), axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(unit(vectors), unit(vectors * dtype(8)))


@SOME
@given(
    seed=st.integers(0, 2**20),
    queries=st.integers(0, 40),
    base=st.integers(0, 60),
    threshold=st.floats(-0.5, 0.9999),
    blocks=BLOCKS,
    axes=st.none() | st.integers(0, 11),
    pay=st.sampled_from([0, 0.05, 1]),
)
def test_neighbours_are_those_of_brute_force(seed, queries, base, threshold, blocks, axes, pay):
    pool = np.random.default_rng(seed).permutation(stored(seed, 60, dim=12))
    asked, there = pool[:queries], pool[60 - base :]
    if axes is not None:
        axes = principal_axes(unit(stored(seed, 50, dim=12)), axes)
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, {**blocks, "HEADS_PAY": pay})
        found = pairs_of(unit(asked), unit(there), threshold, axes)
    exact = exact_cosines(asked, there)
    assert {tuple(p) for p in np.argwhere(exact >= threshold + 1e-6).tolist()} <= found
    assert found <= {tuple(p) for p in np.argwhere(exact >= threshold - 1e-6).tolist()}


@SOME
@given(st.integers(0, 2**20), BLOCKS)
def test_neighbours_do_not_depend_on_blocks_or_order(seed, blocks):
    vectors = unit(stored(seed, 15))
    order = np.random.default_rng(seed).permutation(15)
    whole = pairs_of(vectors, vectors, 0.9)
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, blocks)
        found = pairs_of(vectors[order], vectors[order], 0.9)
    assert {(int(order[a]), int(order[b])) for a, b in found} == whole
    assert {(b, a) for a, b in whole} == whole


def test_the_threshold_is_inclusive():
    vectors = stored(3, 60, dim=16)
    units = unit(vectors)
    for a, b in [(0, 1), (2, 3), (10, 14), (20, 45)]:
        own = cosine(units[[a]], units[[b]])[0]
        above = float(np.nextafter(own, np.float32(2)))
        assert (a, b) in pairs_of(vectors, vectors, float(own))
        assert (a, b) not in pairs_of(vectors, vectors, above)


def test_identical_vectors_are_yielded_in_bounded_pieces(monkeypatch):
    monkeypatch.setattr(search, "PAIRS_AT_ONCE", 20_000)
    vectors = np.tile(unit(stored(4, 5, dim=12)[:1]), (1000, 1))
    both = searchable(vectors, principal_axes(vectors, 3))
    sizes = [len(rows) for rows, _ in neighbours(both, np.arange(1000), both, 0.99)]
    assert sum(sizes) == 1000 * 999
    assert max(sizes) <= 20_000


@SOME
@given(st.integers(0, 2**20), st.integers(1, 40), st.integers(0, 60), st.integers(1, 9), BLOCKS)
def test_top_k_is_that_of_brute_force(seed, queries, base, k, blocks):
    asked, there = stored(seed, queries), stored(seed + 1, base)
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, blocks)
        similarity, rows = top_k(asked, there, k)
    assert similarity.shape == rows.shape == (len(asked), min(k, len(there)))
    exact = exact_cosines(asked, there)
    np.testing.assert_allclose(similarity, np.take_along_axis(exact, rows, 1), atol=1e-6)
    np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :k], atol=1e-6)


@SOME
@given(st.integers(0, 2**20), st.integers(1, 12), BLOCKS)
def test_ties_of_hundreds_of_identical_vectors_go_to_the_first_rows(seed, k, blocks):
    rng = np.random.default_rng(seed)
    kinds = stored(seed, 4, dim=12)
    base = kinds[rng.integers(0, 4, 600)]
    blocks["BASE_ROWS"] *= 10
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, blocks)
        similarity, rows = top_k(kinds, base, k)
    np.testing.assert_array_equal(similarity, np.sort(similarity, axis=1)[:, ::-1])
    for query, kind in enumerate(kinds):
        same = np.flatnonzero((base == kind).all(1))[:k]
        assert rows[query, : len(same)].tolist() == same.tolist()


@pytest.mark.parametrize("rows", [64, 10**6])
def test_ties_of_vectors_that_float32_tells_apart_go_to_the_first_rows_too(monkeypatch, rows):
    monkeypatch.setattr(search, "BASE_ROWS", rows)
    rng = np.random.default_rng(0)
    one = rng.standard_normal(96).astype(np.float16)
    base = np.stack([rng.permutation(one) for _ in range(400)])
    query = np.ones((1, 96), np.float16)  # as near to one permutation as to any other
    similarity, found = top_k(query, base, 6)
    assert len(np.unique(similarity)) == 1
    assert found.tolist() == [list(range(6))]


@SOME
@given(st.integers(0, 2**20), st.integers(1, 9), BLOCKS)
def test_top_k_does_not_depend_on_blocks_or_the_order_of_queries(seed, k, blocks):
    asked, base = stored(seed, 45), stored(seed + 1, 60)
    whole = top_k(asked, base, k)
    order = np.random.default_rng(seed).permutation(len(asked))
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, blocks)
        again = top_k(asked[order], base, k)
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one[order], other)


def test_kmeans_gives_unit_centroids_and_the_same_ones_again():
    vectors = unit(stored(5, 400, dim=16))
    first, again = (spherical_kmeans(vectors, 12, 8, seed=3) for _ in range(2))
    assert first.shape == (12, 16)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("clusters", [1, 3, 10, 25])
def test_kmeans_of_identical_vectors_is_finite(clusters):
    vectors = np.tile(unit(stored(6, 5)[:1]), (10, 1))
    centroids = spherical_kmeans(vectors, clusters, 5, seed=0)
    assert len(centroids) == min(clusters, 10)
    assert np.isfinite(centroids).all()


def test_nearest_is_the_centroid_of_the_highest_cosine():
    vectors, centroids = unit(stored(7, 200)), unit(stored(8, 15))
    exact = exact_cosines(vectors, centroids)
    found = nearest(vectors, centroids)
    assert found.dtype == np.int32
    np.testing.assert_allclose(exact[np.arange(200), found], exact.max(1), atol=1e-3)
    assert nearest(vectors[:0], centroids).shape == (0,)
