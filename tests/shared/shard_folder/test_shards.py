"""Shards keep the img2dataset layout, the same bytes for the same samples, and other readers."""

import base64
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shared.shard_folder import shards
from shared.shard_folder.shards import Sample, output_key, shard_name, write_shard


def encoded(image_format, size=(40, 30), colour=(200, 30, 90), mode="RGB", **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(buffer, image_format, **options)
    return buffer.getvalue()


def samples(count=12):
    """Samples whose optional fields come and go."""
    for number in range(count):
        data = encoded("JPEG", size=(40 + number, 30), colour=(20 * number, 9, 99))
        row = {
            "url": None if number % 3 == 0 else f"https://example.org/{number}",
            "caption": "a “cat”" if number % 4 == 3 else None,
            "sha256": f"{number:064x}",
            "source_part": "00001",
            "source_member": f"{number}.png",
            "seed_similarity": math.nan if number == 5 else np.float32(number / 10),
            "nearest_seed": "cats/1.jpg",
        }
        yield Sample(f"00001/{number}", data, "jpg", row)


@pytest.fixture
def shard(tmp_path):
    write_shard(tmp_path, "00003", samples())
    return tmp_path / "00003.tar"


def test_layout_is_that_of_img2dataset(shard):
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
        first = json.load(tar.extractfile(members[1]))
    assert [member.name for member in members[:4]] == [
        "000030000.jpg",
        "000030000.json",
        "000030001.jpg",
        "000030001.json",
    ]
    assert first["key"] == "000030000"
    assert first["source_key"] == "00001/0"
    assert first["status"] == "success"
    stats = json.loads((shard.parent / "00003_stats.json").read_text())
    assert stats["count"] == stats["successes"] == 12
    assert stats["bytes"] == shard.stat().st_size
    assert sorted(path.name for path in shard.parent.iterdir()) == [
        "00003.parquet",
        "00003.tar",
        "00003_stats.json",
    ]


def test_json_and_parquet_hold_the_same_and_nothing_is_null(shard):
    rows = pq.read_table(shard.with_suffix(".parquet")).to_pylist()
    with tarfile.open(shard) as tar:
        members = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
    for row, member in zip(rows, members, strict=True):
        assert list(member) == sorted(row.keys() - {"offset", "bytes"})
        for name, value in member.items():
            assert type(value) is type(shards.FIELDS[name])
            assert (
                np.float32(value) == np.float32(row[name])
                if name == "seed_similarity"
                else (value == row[name])
            )
    assert members[7]["seed_similarity"] == 0.7
    assert members[5]["seed_similarity"] == -1.0
    assert members[0]["url"] == ""


def test_same_samples_give_the_same_bytes_whoever_writes_them_and_when(tmp_path, monkeypatch):
    for folder, clock in (("first", 1e9), ("second", 2e9)):
        (tmp_path / folder).mkdir()
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        monkeypatch.setattr(os, "getuid", lambda clock=clock: int(clock) % 1000)
        write_shard(tmp_path / folder, "00000", samples())
    for suffix in (".tar", ".parquet", "_stats.json"):
        name = f"00000{suffix}"
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_bytes_of_a_shard_are_those_of_earlier_versions(tmp_path):
    gif = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
    url, caption = "https://example.org/\u00e9", 'a "cat"\n\ud83d'
    row = {"url": url, "caption": caption, "original_width": 3, "seed_similarity": np.float32(0.7)}
    bare = {"sha256": "0" * 64, "seed_similarity": 1e-7}
    members, keys = {"txt": b""}, {"z": {"b": 1, "a": 2.5}, "key": 1}
    fixed = [
        Sample("crawl/a", gif, "gif", row),
        Sample("crawl/b", gif.ljust(512, b"\0"), "gif", members=members, keys=keys),
        Sample("crawl/c", gif + bytes(20_000), "gif", bare, size=(1, 1)),
    ]
    write_shard(tmp_path, "00007", fixed)
    digest = hashlib.sha256((tmp_path / "00007.tar").read_bytes()).hexdigest()
    assert digest == "ea3209c42f240ec804d16584eee8dc6ad52ad71559218d1114a70cbb1856972a"
    rows = pq.read_table(tmp_path / "00007.parquet").to_pylist()
    assert [(row["width"], row["height"], row["bytes"]) for row in rows] == [
        (1, 1, len(sample.data)) for sample in fixed
    ]


def test_a_shard_that_fails_half_way_leaves_no_stats_file(tmp_path):
    def broken():
        yield from samples(3)
        raise OSError("disk gone")

    write_shard(tmp_path, "00000", samples())
    with pytest.raises(OSError, match="disk gone"):
        write_shard(tmp_path, "00000", broken())
    assert not (tmp_path / "00000_stats.json").exists()


def test_an_empty_shard_is_a_valid_one(tmp_path):
    assert write_shard(tmp_path, "00000", [])["count"] == 0
    assert pq.read_table(tmp_path / "00000.parquet").num_rows == 0
    with tarfile.open(tmp_path / "00000.tar") as tar:
        assert tar.getnames() == []


def test_size_in_the_row_is_that_of_the_written_picture(tmp_path):
    write_shard(tmp_path, "00000", [Sample("a", encoded("JPEG", size=(20, 40)), "jpg")])
    row = pq.read_table(tmp_path / "00000.parquet").to_pylist()[0]
    assert (row["width"], row["height"]) == (20, 40)


def test_what_lies_beside_an_image_and_keys_of_its_json_go_with_it(tmp_path):
    members, keys = {"txt": b"a cat", "cls": b"\0\xff"}, {"key": "mine", "nsfw": 0.5, "x": "\ud800"}
    sample = Sample("a", encoded("JPEG"), "jpg", members=members, keys=keys)
    write_shard(tmp_path, "00000", [sample])
    with tarfile.open(tmp_path / "00000.tar") as tar:
        written = {member.name: tar.extractfile(member).read() for member in tar}
    assert list(written) == [f"000000000.{end}" for end in ("jpg", "json", "txt", "cls")]
    assert written["000000000.cls"] == members["cls"]
    said = json.loads(written["000000000.json"])
    assert (said["key"], said["nsfw"], said["x"]) == ("000000000", 0.5, "\ud800")
    assert set(said) == {*shards.FIELDS, "nsfw", "x"}


def test_text_that_is_no_unicode_is_written_with_escapes(tmp_path):
    row = {"caption": "broken \ud83d surrogate"}
    write_shard(tmp_path, "00000", [Sample("a", encoded("JPEG"), "jpg", row)])
    caption = pq.read_table(tmp_path / "00000.parquet").to_pylist()[0]["caption"]
    assert caption == "broken \\ud83d surrogate"


def test_a_field_that_no_shard_holds_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such field in a shard: score"):
        write_shard(tmp_path, "00000", [Sample("a", encoded("JPEG"), "jpg", {"score": 1.0})])


def test_keys_end_where_their_digits_do():
    assert output_key(shard_name(7), 9_999) == "000079999"
    with pytest.raises(ValueError, match="the limit is 10000"):
        output_key(shard_name(7), 10_000)


def test_plain_webdataset_reads_the_shards(shard):
    import webdataset

    read = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in read] == [f"00003{n:04d}" for n in range(12)]
    assert [sample["jpg"].size for sample in read] == [(40 + n, 30) for n in range(12)]
    assert [sample["json"]["source_key"] for sample in read] == [f"00001/{n}" for n in range(12)]


def test_plain_datasets_reads_the_shards_offline(tmp_path):
    for number in range(2):
        captioned = (replace(sample, members={"txt": b"a cat"}) for sample in samples())
        write_shard(tmp_path, shard_name(number), captioned)
    program = """
import sys
from datasets import load_dataset
read = load_dataset("webdataset", data_files=sys.argv[1], split="train")
print(len(read), sorted(read.column_names), {row["jpg"].size[1] for row in read})
print([row["json"]["seed_similarity"] for row in read][:6], read[15]["json"]["caption"])
"""
    offline = {
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "*.tar")],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "24 ['__key__', '__url__', 'jpg', 'json', 'txt'] {30}",
        "[0.0, 0.1, 0.2, 0.3, 0.4, -1.0] a “cat”",
    ]
