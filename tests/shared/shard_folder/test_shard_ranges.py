"""What stage one says of a shard's members is what the tar holds, or is not believed."""

import io
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shared.shard_folder.shard_ranges import MisfitError, read_ranges
from shared.shard_folder.shards import Sample, drop_samples, write_shard


def picture(number):
    buffer = io.BytesIO()
    Image.new("RGB", (8 + number, 8), (9 * number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def samples(count=20):
    for number in range(count):
        beside = {"txt": b"t" * number, "cls": b"1"} if number % 2 else {}
        yield Sample(f"crawl/{number}", picture(number), "png", members=beside)


@pytest.fixture
def shard(tmp_path):
    write_shard(tmp_path, "00000", samples())
    return tmp_path / "00000.tar"


def read(shard):
    return read_ranges(str(shard.with_suffix(".parquet")), str(shard), shard.stat().st_size)


def test_ranges_hold_the_image_of_each_sample(shard):
    data = shard.read_bytes()
    found = {image.key: data[image.offset :][: image.size] for image in read(shard)}
    assert found == {f"00000{number:04d}": picture(number) for number in range(20)}
    table = pq.read_table(shard.with_suffix(".parquet"))
    assert table["bytes"].to_pylist() == [len(picture(number)) for number in range(20)]


def test_ranges_follow_the_images_that_stay(shard, tmp_path):
    (tmp_path / "new").mkdir()
    drop_samples(shard, {"000000000", "000000007"}, tmp_path / "new")
    data = (tmp_path / "new/00000.tar").read_bytes()
    found = {i.key: data[i.offset :][: i.size] for i in read(tmp_path / "new/00000.tar")}
    stays = [number for number in range(20) if number not in (0, 7)]
    assert found == {f"00000{number:04d}": picture(number) for number in stays}


def test_a_size_that_nobody_tells_is_looked_up(shard):
    table = str(shard.with_suffix(".parquet"))
    assert read_ranges(table, str(shard), None) == read(shard)


def test_an_empty_shard_has_no_ranges(tmp_path):
    write_shard(tmp_path, "00000", [])
    assert read(tmp_path / "00000.tar") == []


def test_a_table_of_others_says_nothing(shard):
    pq.write_table(pa.table({"key": ["a"], "url": ["b"]}), shard.with_suffix(".parquet"))
    assert read(shard) is None


def grow(shard, table):
    shard.write_bytes(shard.read_bytes() + bytes(10_240))


def filter_rows(shard, table):
    pq.write_table(pq.read_table(table).slice(1), table)


def rename_members(shard, table):
    """Write another tar of the same size and time, whose members are called otherwise."""
    times = shard.stat().st_mtime_ns
    data = shard.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(shard, "w:") as new:
        for member in old:
            content = old.extractfile(member)
            member.name = member.name.replace("00000", "00009", 1)
            new.addfile(member, content)
    assert shard.stat().st_size == len(data)
    os.utime(shard, ns=(times, times))


def touch(shard, table):
    after = table.stat().st_mtime_ns + 1
    os.utime(shard, ns=(after, after))


def damage(shard, table):
    table.write_bytes(table.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (grow, "it is of a tar of"),
        (filter_rows, r"not those that were written \(hash\)"),
        (rename_members, "000000000 does not lie where it says"),
        (touch, "the tar is newer"),
        (damage, "it cannot be read"),
    ],
)
def test_ranges_that_do_not_fit_their_tar_are_not_believed(shard, spoil, words):
    table = shard.with_suffix(".parquet")
    spoil(shard, table)
    if spoil is not touch:
        os.utime(table)
    with pytest.raises(MisfitError, match=words):
        read(shard)
