"""The vectors of the dedup benchmark are what their docstring claims."""

import numpy as np
import pytest

from curate.forecast import clumps as benchmark

N, DIM, CLUMPS, PLANTED = 4_000, 96, 30, 301


@pytest.fixture(scope="module")
def made():
    return benchmark.clumps(N, DIM, CLUMPS, PLANTED, threshold=0.9, seed=3)


def cosines(vectors):
    exact = vectors.astype(np.float64)
    return exact @ exact.T


def test_vectors_are_unit_and_as_many_as_asked_for(made):
    vectors, pairs = made
    assert (vectors.shape, vectors.dtype) == ((N, DIM), np.float32)
    assert (pairs.shape, pairs.dtype) == ((PLANTED, 2), np.int64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.6, 0.9, 0.95])
def test_planted_cosines_fill_the_range_just_above_the_threshold(threshold):
    vectors, pairs = benchmark.clumps(N, DIM, CLUMPS, PLANTED, threshold)
    exact = vectors.astype(np.float64)
    planted = (exact[pairs[:, 0]] * exact[pairs[:, 1]]).sum(1)
    assert planted.min() >= threshold + 0.002
    assert planted.max() <= threshold + 0.02
    assert abs(planted.mean() - threshold - 0.011) < 0.002
    assert len(np.unique(pairs)) == 2 * PLANTED


def test_the_first_half_of_the_pairs_lies_across_borders_and_the_rest_does_not(made):
    vectors, pairs = made
    centres, _ = benchmark.clump_centres(CLUMPS, DIM, seed=3)
    owner = np.argmax(vectors.astype(np.float64) @ centres.T, axis=1)
    crosses = owner[pairs[:, 0]] != owner[pairs[:, 1]]
    assert crosses[: PLANTED // 2].all()
    assert not crosses[PLANTED // 2 :].any()


def test_nearly_nothing_that_is_not_planted_reaches_the_threshold(made):
    vectors, pairs = made
    above = np.argwhere(np.triu(cosines(vectors) >= 0.9, k=1))
    assert len(above) <= 1.02 * PLANTED
    assert set(map(tuple, pairs)) <= set(map(tuple, above))


def test_clumps_differ_in_size_and_their_cosines_spread(made):
    vectors, _ = made
    centres, _ = benchmark.clump_centres(CLUMPS, DIM, seed=3)
    owner = np.argmax(vectors @ centres.T, axis=1)
    sizes = np.bincount(owner, minlength=CLUMPS)
    assert sizes.max() > 4 * np.median(sizes)
    similarity = cosines(vectors)
    together = similarity[owner[:, None] == owner[None]]
    apart = similarity[owner[:, None] != owner[None]]
    assert np.median(together) > np.median(apart) + 0.15
    assert np.percentile(together, 95) > np.median(together) + 0.15


def test_same_arguments_give_the_same_arrays_and_another_seed_gives_others(made):
    again = benchmark.clumps(N, DIM, CLUMPS, PLANTED, threshold=0.9, seed=3)
    other = benchmark.clumps(N, DIM, CLUMPS, PLANTED, threshold=0.9, seed=4)
    for one, two in zip(made, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(made[0], other[0])


def test_rows_do_not_tell_where_pairs_are(made):
    _, pairs = made
    assert abs(pairs.mean() / N - 0.5) < 0.05
    assert (np.diff(pairs, axis=1) > 1).mean() > 0.95


def test_numbers_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="do not go into"):
        benchmark.clumps(100, DIM, 30, 40)
    with pytest.raises(ValueError, match="threshold"):
        benchmark.clumps(N, DIM, CLUMPS, PLANTED, threshold=0.99)
    assert len(benchmark.clumps(500, DIM, planted=0)[1]) == 0
