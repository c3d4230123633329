"""The nearest seeds of every image that stands for itself, ties by the seeds' keys."""

import numpy as np
import pytest
from made_collection import (
    Made,
    blocks_of,
    clumps,
    clustered,
    exact_cosines,
    from_vectors,
    grouped,
    made_collection,
    searched,
)

from curate.retrieval.nearest_seeds import found

VECTORS = clumps(0, 12, 10, 8, 0.4)
SEEDS = clumps(1, 8, 5, 8, 0.4)


def retrieved(work, crawl, seed, k=5):
    clusters, _ = clustered(crawl, work)
    groups, _ = grouped(crawl, clusters, work, 0.95)
    return np.load(groups / "representative.npy"), searched(crawl, groups, seed, [], work, k=k)[1]


@pytest.mark.parametrize("block", [3, 17, 10**6])
def test_the_nearest_seeds_are_those_of_brute_force(tmp_path, block):
    with blocks_of(block):
        crawl, seed = from_vectors(tmp_path, VECTORS), from_vectors(tmp_path, SEEDS, name="seed")
        stands, folders = retrieved(tmp_path, crawl, seed)
        asked = np.random.default_rng(0).permutation(len(VECTORS))[:90]
        seen, similarity, seeds = found(folders, block, asked)
    exact = exact_cosines(VECTORS, SEEDS)[asked]
    assert similarity.shape == seeds.shape == (90, 5)
    np.testing.assert_array_equal(seen, stands[asked] == asked)
    assert 0 < seen.sum() < 90
    assert np.isnan(similarity[~seen]).all()
    assert (seeds[~seen] == -1).all()
    best = -np.sort(-exact[seen], axis=1)[:, :5]
    np.testing.assert_allclose(similarity[seen], best, atol=1e-6)
    there = np.take_along_axis(exact[seen], seeds[seen], 1)
    np.testing.assert_allclose(there, similarity[seen], atol=1e-6)


def test_of_hundreds_of_identical_seeds_the_first_keys_are_named(tmp_path):
    kinds = SEEDS[[0, 20]]
    rng = np.random.default_rng(0)
    which = rng.integers(0, 2, 400)
    images = [Made(f"s/{row:03d}", kinds[kind], content=str(row)) for row, kind in enumerate(which)]
    images.append(Made("s/000b", None, problem="broken"))
    seed = made_collection(tmp_path, images, name="seed")
    crawl = from_vectors(tmp_path, kinds)
    _, folders = retrieved(tmp_path, crawl, seed, k=9)
    seeds = found(folders, crawl.block, np.arange(2))[2]
    for kind in (0, 1):
        first = [f"s/{row:03d}" for row in np.flatnonzero(which == kind)[:9]]
        assert seed.keys(seeds[kind]) == first


def test_there_are_no_more_seeds_than_there_are(tmp_path):
    crawl = from_vectors(tmp_path, VECTORS[:30])
    images = [Made("s/0", SEEDS[0]), Made("s/1", None), Made("s/2", SEEDS[9])]
    seed = made_collection(tmp_path, images, name="seed")
    _, folders = retrieved(tmp_path, crawl, seed)
    seen, similarity, seeds = found(folders, crawl.block, np.arange(30))
    assert similarity.shape == (30, 2)
    assert np.isfinite(similarity[seen]).all()
    assert set(seeds[seen].ravel()) == {0, 2}


def test_a_block_without_representatives_finds_nothing(tmp_path):
    with blocks_of(3):
        images = [Made(f"p/{row}", SEEDS[0], content="same") for row in range(9)]
        crawl = made_collection(tmp_path, images)
        seed = from_vectors(tmp_path, SEEDS, name="seed")
        _, folders = retrieved(tmp_path, crawl, seed)
        seen, similarity, _ = found(folders, crawl.block, np.arange(9))
    assert seen.tolist() == [True] + 8 * [False]
    assert similarity[0, 0] == pytest.approx(1, abs=1e-6)
    assert similarity.max(initial=0, where=seen[:, None]) <= 1
