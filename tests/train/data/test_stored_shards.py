"""Shards and lists on S3: trained on as local ones are, through requests that fail."""

import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import Fault
from small_run import command, lines, run_command, write_config, write_shards

from shared.pictures.images import ImageError
from train.data.index import read_index
from train.data.selection import read_selection


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("shared.storage.failures._pause", lambda seconds: None)


def content(index) -> dict[str, bytes | ImageError]:
    keys = map(index.key, range(len(index)))
    return dict(zip(keys, index.read_each(range(len(index))), strict=True))


def test_a_training_on_s3_is_that_on_local_shards(s3, tmp_path):
    config, shards = write_config(tmp_path), write_shards(tmp_path / "shards")
    url = s3.put(shards, "shards")
    more = ("--set=steps=2", "--set=data.workers=0")
    run_command(command(config, shards, tmp_path / "local", *more))
    s3.faults.append(Fault("SlowDown", every=9))
    more = ("--set=steps=2", "--set=data.workers=1")
    run_command(command(config, url, tmp_path / "stored", *more), **s3.environment)
    assert s3.faults[0].failed
    assert lines(tmp_path / "stored") == lines(tmp_path / "local")


def test_images_are_read_by_their_ranges_ahead_of_those_that_are_decoded(s3, tmp_path):
    shards = write_shards(tmp_path / "shards")
    local = read_index(str(shards), tmp_path / "local")
    stored = read_index(s3.put(shards, "shards"), tmp_path / "stored")
    assert stored.fingerprint == local.fingerprint
    s3.requests.clear()
    assert content(stored) == content(local)
    asked = [each for each in s3.requests if each.method == "GET" and each.range]
    assert len(asked) == len(s3.requests) == len(stored)
    images = stored.read_each(range(len(stored)))
    s3.requests.clear()
    next(images)
    for _ in range(3000):  # the others are asked for while the first is decoded
        if len(s3.requests) == len(stored):
            break
        time.sleep(0.01)
    assert len(s3.requests) == len(stored)
    images.close()


@pytest.mark.parametrize("way", ["SlowDown", "InternalError", "reset", "cut"])
def test_a_range_that_fails_is_asked_for_again(s3, tmp_path, way):
    shards = write_shards(tmp_path / "shards")
    expected = content(read_index(str(shards), tmp_path / "local"))
    stored = read_index(s3.put(shards, "shards"), tmp_path / "stored")
    s3.faults.append(Fault(way, "GET", ".tar", every=4))
    assert content(stored) == expected
    assert s3.faults[0].failed


def test_a_list_on_s3_names_images_on_s3(s3, tmp_path):
    shards = write_shards(tmp_path / "shards")
    url = s3.put(shards, "shards")
    index = read_index(str(shards), tmp_path / "index")
    rows = []
    for number in range(0, len(index), 2):
        part = index.parts[index._place(number)[0]]
        offset, size = index._row(number, "offset", "size")
        rows.append(
            {
                "key": index.key(number),
                "part": f"{url}/{part.name}.tar",
                "offset": offset,
                "size": size,
            }
        )
    (tmp_path / "list").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list" / "selection.parquet")
    selected = read_selection(s3.put(tmp_path / "list", "list"), None, tmp_path / "selected")
    every = content(index)
    assert content(selected) == {row["key"]: every[row["key"]] for row in rows}


def test_an_out_on_s3_is_refused_in_one_line(tmp_path):
    config = write_config(tmp_path)
    [line] = run_command(
        command(config, "s3://bucket/shards", "s3://bucket/out"), code=2
    ).splitlines()
    assert "--out s3://bucket/out" in line
    assert "name a folder of this machine" in line
