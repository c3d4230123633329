"""The search for copies is complete where no cap binds, and says what a cap loses."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import (
    asked_for,
    best_first,
    clear,
    clumps,
    clustered,
    exact_cosines,
    files_of,
    from_vectors,
    grouped,
    measured_recall,
    ranked,
    searched_for,
)

from curate.dedup import groups, near, visits
from curate.dedup import probes as probes_module
from curate.dedup.bar import Bar
from curate.dedup.groups import EdgeBuffer
from curate.dedup.keep import NUMBER
from curate.dedup.near import DedupSettings, sanity
from curate.dedup.probes import Probes, heaps
from curate.neighbours import search
from curate.neighbours.cluster import ClusterSettings
from curate.neighbours.heads import heads
from shared.errors import LvdError

ALL = DedupSettings(probes=10**6, edges_per_image=10**6)
EYE = np.eye(8, dtype=np.float32)
ROUNDED = 0.05
"""More than what heads of few coordinates round off a product."""


def edges_of(collection, clusters, folder, threshold, chosen):
    """Return the pairs of numbers, the smaller first, that the search finds."""
    ranks = ranked(collection, folder)
    number = np.load(ranks / NUMBER)
    pairs = set()
    for out in searched_for(
        clusters, ranks, folder / "searched", Bar(threshold, threshold), chosen
    ):
        edges = np.load(out / "edges.npy")
        assert (edges[:, 0] > edges[:, 1]).all()
        pairs |= {tuple(sorted(pair)) for pair in number[edges].tolist()}
    return pairs


def asked_of(probes, vectors, own, axes=EYE):
    """Return of each unit vector the clusters that it is searched in."""
    rows, clusters = probes.of(heads(vectors.astype(np.float32), axes), own)
    return [set(clusters[rows == row].tolist()) for row in range(len(vectors))]


def pairs_of(exact, threshold):
    return {tuple(pair) for pair in np.argwhere(np.triu(exact >= threshold, 1)).tolist()}


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 2**20), st.floats(0.5, 0.995), st.integers(2, 40), st.sampled_from([1, 10**6])
)
def test_every_pair_is_found_across_the_borders_of_clusters(
    tmp_path_factory, seed, threshold, count, bucket
):
    work = tmp_path_factory.mktemp("work")
    vectors = clumps(seed, 10, 12, 12, 0.4)
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, threshold)
    collection = from_vectors(work, vectors)
    cut = ClusterSettings(clusters=count, iterations=2)
    clusters, _ = clustered(collection, work, cut, bucket=bucket)
    assert edges_of(collection, clusters, work, threshold, ALL) == pairs_of(exact, threshold)


def test_pairs_lie_across_borders_and_one_probe_loses_them(tmp_path):
    vectors = clumps(1, 15, 20, 12, 0.5)
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, 0.9)
    collection = from_vectors(tmp_path, vectors)
    clusters, assigned = clustered(collection, tmp_path, ClusterSettings(clusters=40))
    own = np.load(assigned[0] / "cluster.npy")
    one = ALL.model_copy(update={"probes": 1})
    pairs = pairs_of(exact, threshold)
    heap = heaps(clusters.load().centroids, 1 - (1 - threshold) / 4)
    inside = {(a, b) for a, b in pairs if own[a] == own[b]}
    in_heap = {(a, b) for a, b in pairs if heap[own[a]] == heap[own[b]]}
    assert 0 < len(inside) < len(in_heap) < len(pairs)
    assert edges_of(collection, clusters, tmp_path, threshold, one) == in_heap


@pytest.mark.parametrize("cap", [1, 2, 10**6])
def test_the_measured_recall_is_the_true_one_of_the_sample(tmp_path, cap):
    vectors = clumps(2, 15, 20, 12, 0.5)
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, 0.85)
    collection = from_vectors(tmp_path, vectors)
    clusters, _ = clustered(collection, tmp_path, ClusterSettings(clusters=40))
    chosen = ALL.model_copy(update={"probes": cap, "recall_sample": 60, "seed": 5})
    found = edges_of(collection, clusters, tmp_path, threshold, chosen)
    measured = measured_recall(collection, clusters, tmp_path, threshold, chosen)
    sample = np.random.default_rng(5).choice(collection.usable, 60, replace=False)
    pairs = [
        tuple(sorted((int(a), int(b))))
        for a in sample
        for b in np.flatnonzero(exact[a] >= threshold)
        if a != b
    ]
    there = sum(pair in found for pair in pairs)
    assert (measured["queries"], measured["pairs"]) == (60, len(pairs))
    assert measured["found"] == there
    assert measured["recall"] == there / len(pairs)
    assert (measured["recall"] == 1) == (cap == 10**6)
    everyone = chosen.model_copy(update={"recall_sample": len(vectors)})
    whole = measured_recall(collection, clusters, tmp_path, threshold, everyone)
    assert whole["recall"] == len(found) / len(pairs_of(exact, threshold))


def test_a_vector_is_searched_in_its_own_cluster_and_in_no_more_than_the_cap():
    centroids = clumps(3, 40, 1, 8, 0.0)
    vectors = clumps(4, 10, 5, 8, 0.5)
    unbounded = asked_of(Probes(centroids, EYE, np.arange(40), 0.8, 10**6), vectors, 7)
    nearness = vectors @ centroids.T
    nearness[:, 7] = 2
    for cap in (1, 3, 8):
        chosen = asked_of(Probes(centroids, EYE, np.arange(40), 0.8, cap), vectors, 7)
        assert [len(each) for each in chosen] == [min(cap, len(each)) for each in unbounded]
        for row, (some, all_of_them) in enumerate(zip(chosen, unbounded, strict=True)):
            assert 7 in some
            left = sorted(all_of_them - some)
            assert some <= all_of_them
            if left:
                assert nearness[row, sorted(some)].min() > nearness[row, left].max() - ROUNDED


def test_the_threshold_is_inclusive(tmp_path):
    vectors = clumps(5, 2, 2, 16, 0.3).astype(np.float16)
    collection = from_vectors(tmp_path, vectors)
    clusters, _ = clustered(collection, tmp_path)
    units = search.unit(vectors)
    own = float(search.cosine(units[[0]], units[[1]])[0])
    above = float(np.nextafter(np.float32(own), np.float32(2)))
    for name, threshold, expected in (("at", own, True), ("above", above, False)):
        folder = tmp_path / name
        folder.mkdir()
        assert ((0, 1) in edges_of(collection, clusters, folder, threshold, ALL)) is expected


def test_no_usable_image_has_no_recall(tmp_path):
    collection = from_vectors(tmp_path, np.zeros((3, 8)))
    clusters, _ = clustered(collection, tmp_path)
    none = {"queries": 0, "pairs": 0, "found": 0, "recall": None}
    switched_off = DedupSettings(recall_sample=0)
    assert measured_recall(collection, clusters, tmp_path, 0.9, switched_off) == none


def test_thousands_of_nearly_identical_vectors_are_searched_in_bounded_memory(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(search, "PAIRS_AT_ONCE", 200_000)
    monkeypatch.setattr(groups, "COMPACT_AT", 50_000)
    count = 2500
    rng = np.random.default_rng(0)
    middle = clumps(6, 20, 1, 64, 0.0)
    near = middle[0] + 0.001 * rng.standard_normal((count, 64))
    collection = from_vectors(tmp_path, np.concatenate([near, middle[1:]]))
    clusters, _ = clustered(collection, tmp_path, ClusterSettings(clusters=1))
    chosen = DedupSettings(edges_per_image=8, probes=50)
    tracemalloc.start()
    folder, passes = grouped(collection, clusters, tmp_path, 0.99, chosen)
    of_groups = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    measured = measured_recall(collection, clusters, tmp_path, 0.99, chosen)
    of_recall = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stands = np.load(folder / "representative.npy")
    assert passes == 1
    assert len(np.unique(stands[:count])) == 1
    assert len(np.unique(stands)) == len(middle)
    assert measured["recall"] == 1
    assert max(of_groups, of_recall) < 40e6


def test_a_search_counts_the_pairs_that_it_compares(tmp_path):
    collection = from_vectors(tmp_path, clumps(3, 6, 30, 8, 0.5))
    clusters, _ = clustered(collection, tmp_path, ClusterSettings(clusters=6), bucket=60)
    assert len(clusters.ranges) > 1
    chosen, bar = DedupSettings(probes=2), Bar(0.5, 0.5)
    asked = asked_for(clusters, tmp_path, 0.5, chosen, None)
    ranks, loaded, expected, told = ranked(collection, tmp_path), clusters.load(), 0, 0
    for folder in asked:
        visits = np.diff(np.load(folder / "starts.npy"))
        sizes = [len(loaded.of(each)) for each in np.load(folder / "visited.npy").tolist()]
        expected += int((visits * sizes).sum())
    for first, last in clusters.ranges:
        (out := tmp_path / f"counted-{first}").mkdir()
        told += near.search(ranks, clusters, asked, first, last, bar, chosen, None, 1, out=out)[
            "compared"
        ]
    assert told == expected > 0


def test_covered_images_neither_ask_nor_answer_in_a_later_pass(tmp_path, monkeypatch):
    vectors = clumps(7, 10, 30, 8, 0.5)
    collection = from_vectors(tmp_path, vectors)
    clusters, _ = clustered(collection, tmp_path)
    chosen = DedupSettings(edges_per_image=1)
    last, passes = grouped(collection, clusters, tmp_path, 0.9, chosen)
    assert passes > 1
    before = np.load(last.parent / "groups-0" / "status.npy")
    before = before[best_first(collection, tmp_path)]
    assert (before == groups.UNDECIDED).any()
    for folder in last.parent.glob("search-1-*"):
        edges = np.load(folder / "edges.npy")
        assert (before[edges[:, 0]] == groups.UNDECIDED).all()
        assert (before[edges[:, 1]] != groups.COVERED).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_threshold_that_most_pairs_reach_stops_the_run_with_the_remedy(tmp_path, seed):
    rng = np.random.default_rng(seed)
    blind = from_vectors(tmp_path, 1 + 0.1 * rng.standard_normal((200, 16)))
    with pytest.raises(LvdError, match=r"0\.9000.*calibrate.*max_pair_share") as caught:
        sanity(blind, Bar(0.9, 0.9), DedupSettings(), out=tmp_path)
    assert "\n" not in str(caught.value)
    assert sanity(blind, Bar(0.9, 0.9), DedupSettings(max_pair_share=1), out=tmp_path)["share"] == 1


def test_a_small_crawl_of_copies_is_not_absurd(tmp_path):
    collection = from_vectors(tmp_path, np.tile(clumps(8, 1, 1, 16, 0.0), (5, 1)))
    assert sanity(collection, Bar(0.9, 0.9), DedupSettings(), out=tmp_path) == {
        "pairs": 10,
        "share": 1.0,
    }


def test_no_image_counts_as_its_own_copy(tmp_path):
    collection = from_vectors(tmp_path, clumps(8, 100, 1, 16, 0.0))
    assert sanity(collection, Bar(1.0, 1.0), DedupSettings(), out=tmp_path) == {
        "pairs": 0,
        "share": 0.0,
    }


def test_the_share_of_pairs_is_that_of_brute_force(tmp_path):
    vectors = clumps(9, 40, 5, 8, 0.5)
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, 0.95)
    collection = from_vectors(tmp_path, vectors)
    said = sanity(
        collection, Bar(threshold, threshold), DedupSettings(max_pair_share=1), out=tmp_path
    )
    assert said["pairs"] == len(pairs_of(exact, threshold))


def test_the_order_of_parts_and_members_changes_no_byte(tmp_path):
    vectors = clumps(10, 10, 20, 8, 0.5)
    results = []
    for order in (np.arange(200), np.random.default_rng(0).permutation(200)):
        work = tmp_path / str(order[0])
        collection = from_vectors(work, vectors, order)
        clusters, _ = clustered(collection, work)
        last, _ = grouped(collection, clusters, work, 0.9, DedupSettings(edges_per_image=2))
        results.append(files_of(work / "cluster") | files_of(last.parent))
    assert len(results[0]) > 5
    assert results[0] == results[1]


def test_an_edge_buffer_is_asked_for_ranks_worse_before_better(tmp_path, monkeypatch):
    seen = []
    add = EdgeBuffer.add

    def spying(self, worse, better):
        seen.append(bool((worse > better).all()))
        add(self, worse, better)

    monkeypatch.setattr(EdgeBuffer, "add", spying)
    collection = from_vectors(tmp_path, clumps(11, 5, 10, 8, 0.5))
    clusters, _ = clustered(collection, tmp_path)
    grouped(collection, clusters, tmp_path, 0.9)
    assert seen
    assert all(seen)


def test_a_heap_of_near_identical_images_keeps_one_whatever_the_cap(tmp_path):
    rng = np.random.default_rng(6)
    others = clumps(7, 100, 4, 32, 0.4)
    heap = clumps(8, 1, 1, 32, 0.0) + 0.02 * rng.standard_normal((600, 32))
    vectors = np.concatenate([others, heap / np.linalg.norm(heap, axis=1, keepdims=True)])
    collection = from_vectors(tmp_path, vectors.astype(np.float16))
    clusters, _ = clustered(collection, tmp_path, ClusterSettings(clusters=40))
    chosen = ALL.model_copy(update={"probes": 2})
    found = edges_of(collection, clusters, tmp_path, 0.9, chosen)
    within = {pair for pair in found if min(pair) >= len(others)}
    assert len(within) == 600 * 599 // 2


def test_heaps_are_led_by_their_first_member():
    centroids = np.array([[1, 0], [0, 1], [0.999, 0.0447], [0.0447, 0.999]], np.float32)
    assert heaps(search.unit(centroids), 0.99).tolist() == [0, 1, 0, 1]
    assert heaps(search.unit(centroids), 0.9999).tolist() == [0, 1, 2, 3]


@given(st.integers(0, 99), st.sampled_from([1, 7, 10**6]), st.sampled_from([0.8, 0.95]))
@settings(max_examples=15, deadline=None)
def test_probes_exclude_no_cluster_that_the_margin_leaves(seed, axes, threshold):
    centroids = search.unit(clumps(seed, 40, 1, 16, 0.0).astype(np.float32))
    vectors = search.unit(clumps(seed + 1, 8, 8, 16, 0.6).astype(np.float32))
    own = 3
    basis = search.principal_axes(np.concatenate([vectors, centroids]), min(axes, 16))
    probes = Probes(centroids, basis, np.arange(40), threshold, 10**6)
    close = vectors.astype(float) @ centroids.T.astype(float)
    apart = np.linalg.norm(centroids[own].astype(float) - centroids, axis=1)
    gap = close[:, [own]] - close - np.sqrt(2 - 2 * threshold) / 2 * apart
    asked = asked_of(probes, vectors, own, basis)
    for row, found in enumerate(asked):
        assert set(np.flatnonzero(gap[row] <= 0).tolist()) <= found
    if axes > 16:
        assert sum(map(len, asked)) <= (gap <= ROUNDED).sum()


def test_of_many_clusters_those_nearest_to_the_own_one_are_ranked(monkeypatch):
    monkeypatch.setattr(probes_module, "LEAST_RANKED", 12)
    monkeypatch.setattr(probes_module, "MOST_RANKED", 12)
    centroids = search.unit(clumps(3, 300, 1, 8, 0.0).astype(np.float32))
    vectors = search.unit(clumps(4, 10, 5, 8, 0.5).astype(np.float32))
    near = np.argsort(-(centroids @ centroids[70]))[:12]
    asked = asked_of(Probes(centroids, EYE, np.arange(300), None, 4), vectors, 70)
    for row, found in enumerate(asked):
        assert found <= set(near.tolist())
        least = np.sort(vectors[row] @ centroids[near].T)[-4]
        assert all(vectors[row] @ centroids[c] > least - ROUNDED for c in found - {70})
        assert len(found) >= 4


def test_a_quarter_of_many_clusters_is_ranked():
    ranked = [probes_module.count_ranked(clusters) for clusters in (9, 1_024, 4_000, 8_000, 10**6)]
    asked = [
        probes_module.count_ranked(*each) for each in ((2_000, 1_500), (9, 50), (10**6, 9_000))
    ]
    assert asked == [1_500, 9, 4_096]  # not fewer than are to be searched
    assert ranked == [9, 1_024, 1_024, 2_000, 4_096]


def test_a_vector_far_from_its_centroid_is_searched_in_clusters_far_from_that_too():
    rng = np.random.default_rng(0)
    around = np.concatenate([[1], np.full(31, 0)])[None] + 0.05 * rng.standard_normal((299, 32))
    away = np.eye(32)[[1]]
    centroids = search.unit(np.concatenate([around, away]).astype(np.float32))
    vector = search.unit((0.3 * around[:1] + away).astype(np.float32))
    [found] = asked_of(
        *(Probes(centroids, np.eye(32, dtype=np.float32), np.arange(300), 0.9, 2), vector, 0),
        np.eye(32, dtype=np.float32),
    )
    assert found == {0, 299}


@pytest.mark.parametrize("together", [1, 40, 10**6])
def test_the_edges_do_not_depend_on_what_is_gathered_together(tmp_path, monkeypatch, together):
    vectors = clumps(2, 15, 20, 12, 0.5)
    collection = from_vectors(tmp_path, vectors)
    clusters, _ = clustered(collection, tmp_path, ClusterSettings(clusters=40), bucket=60)
    monkeypatch.setattr(visits, "TOGETHER", together)
    threshold = clear(exact_cosines(vectors, vectors), 0.85)
    chosen = ALL.model_copy(update={"probes": 1})
    found = edges_of(collection, clusters, tmp_path, threshold, chosen)
    loaded, own = clusters.load(), {}
    for cluster in range(len(loaded)):
        own |= dict.fromkeys(loaded.of(cluster).numbers.tolist(), cluster)
    heap = heaps(loaded.centroids, 1 - (1 - threshold) / 4)
    probes = Probes(loaded.centroids, loaded.axes, heap, threshold, 1)
    asks = [asked_of(probes, loaded.of(c).unit(), c, loaded.axes) for c in range(len(loaded))]
    there = {
        n: a for c in range(40) for n, a in zip(loaded.of(c).numbers.tolist(), asks[c], strict=True)
    }
    pairs = pairs_of(exact_cosines(vectors, vectors), threshold)
    assert found == {(a, b) for a, b in pairs if own[b] in there[a] or own[a] in there[b]}
    assert found < pairs


def test_a_small_crawl_is_searched_whole_and_a_larger_one_in_a_growing_number_of_clusters():
    assert [near.count_compared(n) for n in (100, 4_096, 16_384)] == [4_096] * 3
    assert near.count_compared(10**6) == 7_000
    clusters = [near.count_compared(n) / n ** (1 / 3) for n in (10**6, 64 * 10**6)]
    assert clusters[1] == pytest.approx(2 * clusters[0], rel=1e-3)
