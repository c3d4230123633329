"""What is opened and held for an image stays as much when there are more images."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_collection import from_vectors

from curate.catalogue import collection as module
from curate.catalogue.collection import block_size, read_rows


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
