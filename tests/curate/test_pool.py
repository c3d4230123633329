"""A search of the pool joins every image with its most similar ones, as many as are asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import (
    best_first,
    clear,
    clumps,
    clustered,
    deduped,
    exact_cosines,
    from_vectors,
    grouped,
    measured_recall,
)
from test_groups import reference_components

from curate.dedup import most_similar
from curate.dedup.most_similar import MostSimilar
from curate.dedup.near import DedupSettings
from curate.dedup.probes import Probes
from curate.neighbours.cluster import ClusterSettings
from curate.neighbours.heads import heads

POOL = DedupSettings(groups="components", search="pool")


def nearest_pairs(exact, threshold, most):
    """Return the pairs of every image and the `most` others most similar to it, by brute force."""
    pairs = set()
    for row, cosines in enumerate(exact):
        near = [other for other in np.argsort(-cosines, kind="stable") if other != row]
        pairs |= {(row, int(other)) for other in near[:most] if cosines[other] >= threshold}
    return {tuple(sorted(pair)) for pair in pairs}


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([1, 3, 64]), st.sampled_from([0, 20, 10**6]))
def test_components_are_those_of_brute_force_over_all_pairs(tmp_path_factory, seed, most, at):
    work = tmp_path_factory.mktemp("work")
    vectors = clumps(seed, 8, 10, 6, 0.5)
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, 0.9)
    collection = from_vectors(work, vectors)
    chosen = POOL.model_copy(update={"neighbours": most})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(most_similar, "COMPACT_AT", at)
        stands = deduped(collection, work, threshold, chosen)
    pairs = nearest_pairs(exact, threshold, most)
    by_rank = best_first(collection, work)
    rank = np.argsort(by_rank)
    in_ranks = [(rank[a], rank[b]) for a, b in pairs]
    expected = by_rank[reference_components(in_ranks, len(vectors))][rank]
    np.testing.assert_array_equal(stands, expected)


def test_few_cells_lose_pairs_and_the_measured_recall_says_so(tmp_path):
    vectors = clumps(2, 15, 20, 12, 0.5)
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, 0.85)
    collection = from_vectors(tmp_path, vectors)
    clusters, assigned = clustered(collection, tmp_path, ClusterSettings(clusters=40))
    own = np.load(assigned[0] / "cluster.npy")
    within = [own[a] == own[b] for a, b in nearest_pairs(exact, threshold, len(vectors))]
    shares, groups = [], []
    for cells in (1, 40):
        asked = {"probes": cells, "recall_sample": len(vectors), "neighbours": len(vectors)}
        chosen = POOL.model_copy(update=asked)
        shares.append(measured_recall(collection, clusters, tmp_path, threshold, chosen)["recall"])
        found, _ = grouped(collection, clusters, tmp_path, threshold, chosen)
        groups.append(len(np.unique(np.load(found / "representative.npy"))))
    assert shares == [np.mean(within), 1]
    assert shares[0] < 1
    assert groups[0] > groups[1]


@given(st.integers(0, 99), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_the_nearest_cells_are_those_of_brute_force_and_the_own_one(seed, cap):
    rng = np.random.default_rng(seed)
    centroids = clumps(seed, 10, 1, 8, 0.0)
    vectors = clumps(seed + 1, 3, 4, 8, 0.5)
    own = int(rng.integers(10))
    chosen = np.zeros((len(vectors), 10), bool)
    axes = np.eye(8, dtype=np.float32)
    head = heads(vectors.astype(np.float32), axes)
    chosen[Probes(centroids, axes, np.arange(10), None, cap).of(head, own)] = True
    assert chosen[:, own].all()
    assert (chosen.sum(1) >= min(cap, 10)).all()
    nearness = vectors @ centroids.T
    nearness[:, own] = 2
    for row, cells in enumerate(chosen):
        if cap < 10:
            assert nearness[row, cells].min() > nearness[row, ~cells].max() - 0.05


def test_ties_go_to_the_best_rank():
    kept = MostSimilar(2)
    one, others = np.zeros(4, np.int64), np.array([7, 3, 5, 9])
    kept.add(one[:2], others[:2], np.array([0.5, 0.5], np.float32))
    kept.add(one[2:], others[2:], np.array([0.5, 0.9], np.float32))
    image, other, _ = kept.result()
    assert (image.tolist(), other.tolist()) == ([0, 0], [9, 3])
