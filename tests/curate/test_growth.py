"""What is opened and held for an image stays as much when there are more images."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_collection import clumps, clustered, exact_cosines, from_vectors

from curate.catalogue import collection as module
from curate.catalogue.collection import block_size, read_rows
from curate.neighbours import cluster as clustering
from curate.neighbours import clusters as mapped_clusters
from curate.neighbours import in_dataset
from curate.neighbours.clusters import MAPPED
from shared.storage.arrays import map_array, read_array_rows


def test_files_opened_by_all_blocks_of_all_blocks_grow_as_the_images():
    for images in (10**6, 4 * 10**6, 10**8, 10**9):
        blocks = -(-images // block_size(images))
        assert blocks**2 / images < 0.15
        assert blocks >= 64
    assert block_size(4_000) == block_size(1) == module.LEAST_BLOCK


@pytest.mark.parametrize("group", [1, 7, 100, 10**6])
def test_rows_of_a_table_are_those_asked_for_in_their_order(tmp_path, group):
    table = pa.table({"a": np.arange(230), "b": [str(row) for row in range(230)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=group)
    rng = np.random.default_rng(group)
    for rows in (np.empty(0, np.int64), np.array([229]), rng.integers(0, 230, 400)):
        assert read_rows(tmp_path / "t.parquet", None, rows).equals(table.take(rows))
        assert read_rows(tmp_path / "t.parquet", ["b"], rows)["b"].to_pylist() == [
            str(row) for row in rows
        ]
    assert read_rows(tmp_path / "t.parquet", None, None).equals(table)


def test_an_image_costs_one_row_group_of_its_part(tmp_path, monkeypatch):
    read = []
    groups = pq.ParquetFile.read_row_groups

    def noted(file, some, *args, **kwargs):
        read.append((len(some), file.num_row_groups))
        return groups(file, some, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", noted)
    made = from_vectors(tmp_path, np.eye(120, 4, dtype=np.float32) + 1)
    for part in made.parts:
        path = tmp_path / part.facts / "facts.parquet"
        pq.write_table(pq.read_table(path), path, row_group_size=10)
    assert made.facts(np.array([3, 77, 4]))["key"].to_pylist() == made.keys(np.array([3, 77, 4]))
    assert read == [(1, 5), (1, 5)]


def test_clusters_laid_side_by_side_read_every_vector_once(tmp_path, monkeypatch):
    read = {"vectors.npy": 0, "numbers.npy": 0, "offsets.npy": 0}

    def noted(path, start, stop):
        read[path.name] += stop - start
        return read_array_rows(path, start, stop)

    monkeypatch.setattr(clustering, "read_array_rows", noted)
    collection = from_vectors(tmp_path, clumps(0, 30, 8, 16, 0.3))
    clusters, assigned = clustered(collection, tmp_path, block=24, bucket=40)
    assert min(len(assigned), len(clusters.ranges)) > 3
    assert read["vectors.npy"] == read["numbers.npy"] == len(collection)
    each = len(clusters.load()) + len(clusters.ranges)
    assert read["offsets.npy"] == len(assigned) * each


def test_few_ranges_of_clusters_are_mapped_at_a_time(tmp_path, monkeypatch):
    collection = from_vectors(tmp_path, clumps(0, 30, 8, 16, 0.3))
    clusters, _ = clustered(collection, tmp_path, bucket=1)
    assert len(clusters.ranges) > 3 * MAPPED
    opened = []
    monkeypatch.setattr(
        mapped_clusters, "map_array", lambda path: opened.append(path) or map_array(path)
    )
    loaded = clusters.load()
    held = 0
    for cluster in range(len(loaded)):
        held += len(loaded.of(cluster))
        assert len(loaded.mapped) <= MAPPED
    assert held == clusters.images == len(collection)
    assert len(opened) == 4 * len(clusters.ranges)


def test_the_memory_of_a_search_among_seeds_does_not_grow_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(in_dataset, "TOGETHER", 64)
    monkeypatch.setattr(module, "block_size", lambda images: 64)
    queries, peaks = clumps(1, 4, 4, 256, 0.3).astype(np.float16), []
    for count in (300, 600, 1200):
        vectors = clumps(2, count // 4, 4, 256, 0.3)
        seed = from_vectors(tmp_path / str(count), vectors)
        warm = in_dataset.nearest_images(queries, seed, 5)
        tracemalloc.start()
        similarity, numbers = in_dataset.nearest_images(queries, seed, 5)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        np.testing.assert_array_equal(warm[1], numbers)
        exact = exact_cosines(queries, vectors)
        np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :5], atol=1e-6)
    assert max(peaks) < 1.2 * peaks[0]
    assert max(peaks) < 1200 * 256 * 2
