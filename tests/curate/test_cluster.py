"""Clustering gives every vector its nearest centroid, and loses and repeats none."""

import numpy as np
import pytest
from made_collection import (
    Made,
    clumps,
    clustered,
    files_of,
    from_vectors,
    made_collection,
)

from curate.neighbours import levels
from curate.neighbours.cluster import ClusterSettings, centroids, count_clusters
from curate.neighbours.levels import find_groups, find_two_levels, nearest_of
from curate.neighbours.search import nearest, unit

VECTORS = clumps(0, 30, 8, 16, 0.3)


def members_of(clusters):
    """Return the numbers and the vectors of every cluster."""
    loaded = clusters.load()
    assert len(loaded) == len(loaded.centroids)
    found = [loaded.of(own) for own in range(len(loaded))]
    return [(members.numbers.tolist(), members.unit()) for members in found]


def clusters_of(assigned):
    return np.concatenate([np.load(folder / "cluster.npy") for folder in assigned])


def test_every_image_is_in_the_cluster_of_its_nearest_centroid_once(tmp_path):
    collection = from_vectors(tmp_path, VECTORS)
    clusters, assigned = clustered(collection, tmp_path)
    own = clusters_of(assigned)
    assert clusters.load().centroids.shape == (round(len(VECTORS) ** 0.5), 16)
    np.testing.assert_allclose(np.linalg.norm(clusters.load().centroids, axis=1), 1, atol=1e-6)
    exact = VECTORS.astype(np.float16).astype(float) @ clusters.load().centroids.T.astype(float)
    np.testing.assert_allclose(exact[np.arange(len(own)), own], exact.max(1), atol=1e-5)
    for number, (numbers, vectors) in enumerate(members_of(clusters)):
        assert numbers == np.flatnonzero(own == number).tolist()
        np.testing.assert_allclose(vectors, VECTORS[numbers], atol=2e-3)


@pytest.mark.parametrize("bucket", [1, 40, 10**6])
@pytest.mark.parametrize("block", [9, 37, 10**6])
def test_members_do_not_depend_on_blocks_and_buckets(tmp_path, bucket, block):
    collection = from_vectors(tmp_path, VECTORS)
    whole, assigned = clustered(collection, tmp_path)
    parted, again = clustered(collection, tmp_path, block=block, bucket=bucket)
    np.testing.assert_array_equal(clusters_of(assigned), clusters_of(again))
    for one, other in zip(members_of(whole), members_of(parted), strict=True):
        assert one[0] == other[0]
        np.testing.assert_array_equal(one[1], other[1])
    assert [first for first, _ in parted.ranges[1:]] == [last for _, last in parted.ranges[:-1]]
    assert (parted.ranges[0][0], parted.ranges[-1][1]) == (0, len(whole.load()))


def test_only_the_first_of_exact_copies_is_a_member(tmp_path):
    images = [Made(f"p/{row:03d}", VECTORS[row % 20], content=str(row % 20)) for row in range(100)]
    images.append(Made("p/zzz", None, problem="broken"))
    collection = made_collection(tmp_path, images)
    clusters, assigned = clustered(collection, tmp_path)
    there = [number for numbers, _ in members_of(clusters) for number in numbers]
    assert sorted(there) == list(range(20))
    own = clusters_of(assigned)
    np.testing.assert_array_equal(own[:100], np.tile(own[:20], 5))
    assert own[100] == -1


@pytest.mark.parametrize(("asked", "got"), [(1, 1), (7, 7), (240, 240), (9999, 240), ("auto", 15)])
def test_there_are_no_more_clusters_than_images(tmp_path, asked, got):
    collection = from_vectors(tmp_path, VECTORS)
    clusters, _ = clustered(collection, tmp_path, ClusterSettings(clusters=asked, iterations=2))
    assert len(clusters.load()) == got
    assert sum(len(numbers) for numbers, _ in members_of(clusters)) == len(VECTORS)


def test_empty_clusters_at_the_end_are_kept(tmp_path):
    collection = from_vectors(tmp_path, np.tile(VECTORS[:1], (9, 1)))
    clusters, _ = clustered(collection, tmp_path, ClusterSettings(clusters=4), bucket=1)
    sizes = [len(numbers) for numbers, _ in members_of(clusters)]
    assert len(sizes) == 4
    assert sum(sizes) == 9


def test_nothing_usable_gives_no_cluster(tmp_path):
    collection = made_collection(tmp_path, [Made("p/0", None, problem="broken")])
    clusters, assigned = clustered(collection, tmp_path)
    assert clusters.ranges == ()
    assert clusters_of(assigned).tolist() == [-1]


def test_the_same_collection_gives_the_same_bytes_and_another_seed_others(tmp_path):
    collection = from_vectors(tmp_path, VECTORS)
    settings = [ClusterSettings(points_per_cluster=4, seed=seed) for seed in (1, 1, 2)]
    folders = [tmp_path / name for name in "abc"]
    for folder, chosen in zip(folders, settings, strict=True):
        folder.mkdir()
        assert centroids(collection, chosen, 1, out=folder)["sample"] == 15 * 4
    first, again, other = map(files_of, folders)
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("images", "count"), [(1, 1), (900, 30), (62_500, 250), (500_000, 1_000), (32 * 10**6, 16_000)]
)
def test_clusters_are_as_many_as_the_root_of_the_images_and_more_of_many(images, count):
    assert count_clusters(images, ClusterSettings()) == count
    assert count_clusters(images, ClusterSettings(clusters=7)) == min(images, 7)


def test_two_levels_give_as_many_distinct_centroids_and_nearly_the_nearest(monkeypatch):
    vectors = unit(clumps(5, 60, 40, 24, 0.5).astype(np.float32))
    centers = find_two_levels(vectors, 100, 5, 0)
    assert len(np.unique(centers, axis=0)) == 100
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1, atol=1e-6)
    groups = find_groups(centers, 5, 0)
    assert (np.diff(groups.of[groups.order()]) >= 0).all()
    exact = nearest(vectors, centers)
    np.testing.assert_array_equal(nearest_of(vectors, centers, groups), exact)
    monkeypatch.setattr(levels, "SINGLE", 10)
    found = nearest_of(vectors, centers, groups)
    lost = (vectors * (centers[exact] - centers[found])).sum(1)
    assert (found != exact).mean() < 0.02
    assert lost.min() > -1e-6
    monkeypatch.setattr(levels, "LOOKED_INTO", 1)
    own = groups.of[nearest_of(vectors, centers, groups)]
    np.testing.assert_array_equal(own, nearest(vectors, groups.middles))


def test_every_image_is_a_member_once_where_clusters_are_found_in_two_levels(tmp_path, monkeypatch):
    import curate.neighbours.cluster as module

    monkeypatch.setattr(levels, "SINGLE", 10)
    monkeypatch.setattr(module, "SINGLE", 10)
    collection = from_vectors(tmp_path, VECTORS)
    cut = ClusterSettings(clusters=40)
    clusters, assigned = clustered(collection, tmp_path, cut, block=50, bucket=60)
    again, _ = clustered(collection, tmp_path, cut, block=50, bucket=10**6)
    own = clusters_of(assigned)
    for number, (numbers, _) in enumerate(members_of(clusters)):
        assert numbers == np.flatnonzero(own == number).tolist()
    np.testing.assert_array_equal(clusters.load().centroids, again.load().centroids)
    assert len(clusters.load()) == 40
