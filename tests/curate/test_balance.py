"""Hierarchical sampling meets its target exactly and flattens a long tail."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import exact_cosines

from curate import balance
from curate.neighbours.hierarchy import Hierarchy, choose_levels, find_hierarchy
from curate.selection.evenness import measure_evenness
from curate.selection.sampling import sample

KINDS = 100


@pytest.fixture(scope="module")
def long_tail():
    """Return vectors of kinds in numbers that fall as 1 / rank, and the kind of each, mixed."""
    rng = np.random.default_rng(0)
    sizes = np.maximum(4, 1000 / np.arange(1, KINDS + 1)).astype(int)
    kind = rng.permutation(np.repeat(np.arange(KINDS), sizes))
    middle = rng.standard_normal((KINDS, 16))
    vectors = middle[kind] + 0.6 * rng.standard_normal((len(kind), 16))
    return vectors.astype(np.float16), kind


def effective(kind, weight):
    drawn = np.bincount(kind, weight, KINDS).astype(np.int64)
    return measure_evenness(drawn, KINDS)["effective_clusters"]


def test_a_long_tail_gets_flatter_and_more_so_with_levels_and_resampling(long_tail):
    vectors, kind = long_tail
    before = effective(kind, np.ones(len(kind)))
    target = len(kind) // 4
    flat = balance(vectors, target, levels=[300], resample=0)
    levels = balance(vectors, target, levels=[300, 60], resample=0)
    resampled = balance(vectors, target, levels=[300, 60])
    assert {found.weight.sum() for found in (flat, levels, resampled)} == {target}
    found = [effective(kind, x.weight) for x in (flat, levels, resampled)]
    assert before < found[0] < found[1] < found[2]
    assert effective(kind, balance(vectors, target).weight) > 1.6 * before
    drawn = np.random.default_rng(0).choice(len(kind), target, replace=False)
    assert effective(kind[drawn], np.ones(target)) < found[0]


def test_the_lowest_cluster_is_the_nearest_centroid_of_float64(long_tail):
    vectors, _ = long_tail
    hierarchy = find_hierarchy(vectors, [40, 8], resample=2, iterations=5, seed=0)
    parent, top = hierarchy.parents
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    # One round of Lloyd from what was found moves few: these are clusters.
    middle = np.stack([unit[parent == cluster].sum(0) for cluster in range(len(top))])
    again = exact_cosines(unit, middle).argmax(1)
    assert (again == parent).mean() > 0.9
    assert [len(held) for held in hierarchy.counts()] == [40, 8]
    for held, own in zip(hierarchy.counts(), (parent, top[parent]), strict=True):
        assert held.tolist() == np.bincount(own, minlength=len(held)).tolist()
    assert hierarchy.paths().tolist() == [[int(top[c]), c] for c in range(40)]
    assert hierarchy.similarity.min() > 0


def made_hierarchy(below, above, similarity=None):
    """Return a hierarchy of two levels: `below` of images, `above` of its clusters."""
    similarity = np.zeros(len(below)) if similarity is None else similarity
    return Hierarchy(
        (np.array(below, np.int32), np.array(above, np.int32)), np.array(similarity, np.float32)
    )


def as_even_as_can_be(dealt, capacity, least=None):
    """Tell whether no unit could go from one to another that has two fewer, and has room."""
    least = np.zeros(len(dealt)) if least is None else least
    return all(
        not (dealt[a] > dealt[b] + 1 and dealt[b] < capacity[b] and dealt[a] > least[a])
        for a in range(len(dealt))
        for b in range(len(dealt))
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
    st.integers(1, 100),
    st.integers(1, 3),
    st.sampled_from(["random", "nearest", "furthest"]),
)
def test_what_stays_is_drawn_first_and_counts_and_the_rest_is_even(
    images, above, target, repeats, draw
):
    below, stays = (np.array(column) for column in zip(*images, strict=True))
    above = np.array(above)
    hierarchy = made_hierarchy(below, above, np.arange(len(below)) % 4 / 4)
    weight = sample(hierarchy, target, draw, repeats, 0, stays)
    assert weight[stays].min(initial=1) >= 1
    assert weight.sum() == min(max(target, stays.sum()), repeats * len(below))
    top = above[below]
    for own, inside in [(top, np.ones(3, bool)), *((below, above == x) for x in range(3))]:
        counted = (weight, repeats * np.ones(len(own)), stays)
        dealt, capacity, least = (np.bincount(own, x, len(inside))[inside] for x in counted)
        assert as_even_as_can_be(dealt, capacity, least)
    for cluster in range(6):
        mine = below == cluster
        if not weight[mine & ~stays].max(initial=0):
            continue
        assert weight[mine].max() - weight[mine].min() <= 1
        assert weight[mine & stays].min(initial=repeats) >= weight[mine & ~stays].max()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=40),
    st.lists(st.integers(0, 2), min_size=8, max_size=8),
    st.integers(0, 150),
    st.integers(1, 3),
    st.sampled_from(["random", "nearest", "furthest"]),
    st.integers(0, 3),
)
def test_every_level_is_dealt_exactly_and_evenly(below, above, target, repeats, draw, seed):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, 4, len(below)) / 4
    hierarchy = made_hierarchy(below, above, similarity)
    weight = sample(hierarchy, target, draw, repeats, seed)
    assert weight.sum() == min(target, repeats * len(below))
    assert weight.max(initial=0) <= repeats
    below, above = np.array(below), np.array(above)
    top = above[below]
    tops = max(above) + 1
    dealt = np.bincount(top, weight, tops)
    assert as_even_as_can_be(dealt, repeats * np.bincount(top, minlength=tops))
    for cluster in range(tops):
        inside = np.flatnonzero(above == cluster)
        own = [weight[below == child].sum() for child in inside]
        assert as_even_as_can_be(own, [repeats * (below == child).sum() for child in inside])
    for cluster in range(8):
        rows = np.flatnonzero(below == cluster)
        if len(rows):
            least, once_more = divmod(int(weight[rows].sum()), len(rows))
            assert sorted(weight[rows]) == sorted(
                [least + 1] * once_more + [least] * (len(rows) - once_more)
            )
            sign = {"nearest": -1, "furthest": 1, "random": 0}[draw]
            first = sorted(rows, key=lambda row: (sign * similarity[row], row))[:once_more]
            if sign:
                assert (weight[first] == least + 1).all()
    assert (weight == sample(hierarchy, target, draw, repeats, seed)).all()


def test_repeats_fill_small_clusters_up(long_tail):
    vectors, kind = (each[:1500] for each in long_tail)
    once = balance(vectors, len(kind), levels=[60, 12])
    often = balance(vectors, len(kind), levels=[60, 12], repeats=8)
    assert once.kept.all()
    assert often.weight.sum() == len(kind)
    assert 1 < often.weight.max() <= 8
    assert effective(kind, often.weight) > effective(kind, once.weight)
    beyond = balance(vectors, 10 * len(kind), repeats=2)
    assert (beyond.weight == 2).all()


def test_the_same_vectors_give_the_same_sample_whatever_the_threads(long_tail):
    vectors = long_tail[0][:1500]
    found = [balance(vectors, 0.3, threads=threads) for threads in (1, 2, 1)]
    assert {each.weight.tobytes() for each in found} == {found[0].weight.tobytes()}
    assert found[0].weight.sum() == round(0.3 * len(vectors))
    other = balance(vectors, 0.3, seed=1)
    assert (other.weight != found[0].weight).any()


def test_few_vectors_and_those_of_zeros_are_dealt_with():
    assert balance(np.empty((0, 4), np.float32), 5).weight.shape == (0,)
    assert balance(np.eye(3, dtype=np.float32), 2).weight.sum() == 2
    vectors = np.concatenate([np.zeros((3, 8)), np.eye(8)])
    assert balance(vectors, 4, levels=[5, 2]).weight.sum() == 4
    assert balance(np.ones((50, 4)), 7).weight.sum() == 7


def test_levels_are_about_the_published_ones():
    assert choose_levels(743_000_000) == [14_860_000, 1_486_000, 148_600, 14_860]
    assert choose_levels(10_000) == [200, 20]
    assert choose_levels(400) == [20, 2]
    assert choose_levels(0) == choose_levels(1) == [1, 1]


def test_evenness_is_that_of_the_definition():
    counts = np.array([50, 30, 20, 0, 0])
    share = np.array([0.5, 0.3, 0.2])
    found = measure_evenness(counts, 20)
    assert found["effective_clusters"] == pytest.approx(np.prod(share**-share), abs=1e-4)
    assert found["largest_tenth"] == pytest.approx(0.8)
    assert measure_evenness(np.full(40, 3), 40) == {
        "largest_tenth": 0.1,
        "effective_clusters": 40.0,
    }
    assert measure_evenness(np.zeros(3, int), 0)["effective_clusters"] == 0


def test_what_is_held_is_drawn_before_all_others_and_counts(long_tail):
    vectors, kind = long_tail
    held = kind == 0
    found = balance(vectors, 1500, held=held, levels=[60, 12])
    assert found.weight.sum() == 1500
    assert found.kept[held].all()
    alone = balance(vectors, 1500, levels=[60, 12])
    assert not alone.kept[held].all()
