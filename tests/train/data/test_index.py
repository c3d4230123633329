"""The index: the same bytes as reading a part whole, kept and mended piecewise, damage as reasons."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import train.data.file_ranges
import train.data.index
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.parts import PartReader
from shared.errors import LvdError
from shared.pictures.images import ImageError
from shared.shard_folder.shards import Sample, write_shard
from train.data.index import read_index


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def shards(folder, count=3, images=5):
    """Write WebDataset shards of made-up bytes, and return them by key."""
    content = {}
    for shard in range(count):
        members = {}
        for image in range(images):
            data = b"%d-%d" % (shard, image) * (image + 1)
            members |= {f"{image:03d}.jpg": data, f"{image:03d}.json": b'{"url": "u"}'}
            content[f"{shard:05d}/{image:03d}"] = data
        write_tar(folder / f"{shard:05d}.tar", members)
    return content


def content(index):
    """Return each sample's bytes, or the reason why not, by key."""
    numbers = np.random.default_rng(0).permutation(len(index)).tolist()
    found = dict(zip(map(index.key, numbers), index.read_each(numbers), strict=True))
    return {k: str(v) if isinstance(v, ImageError) else v for k, v in found.items()}


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def test_every_sample_is_there_once_with_the_bytes_that_its_part_holds(tmp_path):
    expected = shards(tmp_path / "data")
    index = read_index(str(tmp_path / "data"), tmp_path / "index")
    assert len(index) == sum(index.sizes) == 15
    assert [index.key(number) for number in range(15)] == sorted(expected)
    assert content(index) == expected
    assert index.read(np.int64(7)) == expected["00001/002"]


def test_a_folder_of_images_reads_like_its_files(tmp_path):
    names = [f"class{n % 3}/{n}.png" for n in range(60)] + [os.fsdecode(b"caf\xe9.jpg")]
    for number, name in enumerate(names):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"%d" % number)
    (tmp_path / "data/gone.jpg").symlink_to(tmp_path / "nowhere")
    found = content(read_index(str(tmp_path / "data"), tmp_path / "index"))
    assert found.pop("gone.jpg") == "a link that leads to no file"
    assert found.pop("caf\\xe9.jpg") == b"60"
    assert found == {name: b"%d" % number for number, name in enumerate(names[:-1])}


def test_remote_shards_read_like_local_ones(tmp_path):
    expected = shards(tmp_path / "data")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "data"), "/test_index", recursive=True)
    index = read_index("memory://test_index", tmp_path / "remote")
    assert content(index) == expected
    assert index.fingerprint == read_index(str(tmp_path / "data"), tmp_path / "i").fingerprint
    memory.rm("/test_index/00001.tar")
    assert "cannot be fetched" in content(index)["00001/000"]
    memory.rm("/test_index", recursive=True)


def test_remote_shards_are_listed_by_their_headers(tmp_path, monkeypatch):
    damaged = {"0.jpg": b"0" * 700, "1.heic": b"1", "bare": b"\xff\xd8\xff4", "note": b"5"}
    write_tar(tmp_path / "data/a.tar", {f"{n}.jpg": bytes(200_000) for n in range(10)})
    path = write_tar(tmp_path / "data/b.tar", damaged | {"x.jpg": b"2", "x.png": b"3"})
    path.write_bytes(path.read_bytes() + b"rubbish" * 100)
    long = "d/" * 60 + "0.jpg"
    huge = tarfile.TarInfo("2.jpg")
    huge.size = 3 << 30
    path = write_tar(tmp_path / "data/c.tar", {long: b"0"})
    path.write_bytes(path.read_bytes().rstrip(b"\0")[: 5 * 512] + huge.tobuf() + bytes(1000))
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "data"), "/test_headers", recursive=True)
    read = []
    whole = MemoryFileSystem.cat_file

    def cat_file(self, path, start=None, end=None, **_):
        read.append((path.rpartition("/")[2], end - start))
        return whole(self, path, start, end)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    remote = read_index("memory://test_headers", tmp_path / "remote")
    assert sum(size for name, size in read if name == "a.tar") < 200_000
    local = read_index(str(tmp_path / "data"), tmp_path / "local")
    assert content(remote) == content(local)
    assert remote.fingerprint == local.fingerprint
    memory.rm("/test_headers", recursive=True)


def written_by_stage_one(folder, images=6):
    folder.mkdir()
    for number in range(2):
        stream = io.BytesIO()
        Image.new("RGB", (9, 9), (90 * number, 0, 0)).save(stream, "PNG")
        samples = [Sample(f"k/{n}", stream.getvalue(), "png") for n in range(images)]
        write_shard(folder, f"{number:05d}", samples)


@pytest.mark.parametrize("where", ["local", "remote"])
def test_what_stage_one_says_of_its_shards_is_taken(tmp_path, monkeypatch, where):
    written_by_stage_one(tmp_path / "data")
    (tmp_path / "bare").mkdir()
    for path in (tmp_path / "data").glob("*.tar"):
        (tmp_path / "bare" / path.name).write_bytes(path.read_bytes())
    by_headers = read_index(str(tmp_path / "bare"), tmp_path / "index")
    place = str(tmp_path / "data")
    if where == "remote":
        fsspec.filesystem("memory").put(place, "/test_taken", recursive=True)
        place = "memory://test_taken"

    def walked(*_):
        raise AssertionError("members are listed")

    monkeypatch.setattr("shared.datasets.parts.list_tar", walked)
    monkeypatch.setattr("shared.datasets.ranged_tars.list_tar", walked)
    taken = read_index(place, tmp_path / "index")
    assert content(taken) == content(by_headers)
    assert taken.fingerprint == by_headers.fingerprint


def test_what_stage_one_says_of_other_shards_is_not_believed(tmp_path, capsys):
    written_by_stage_one(tmp_path / "data")
    spoilt = tmp_path / "data/00001.tar"
    write_tar(spoilt, {"new.jpg": b"new"})
    found = content(read_index(str(tmp_path / "data"), tmp_path / "index"))
    assert found["00001/new"] == b"new"
    assert len(found) == 7
    said = capsys.readouterr().err
    assert "what 00001.parquet says of its members is not believed, and they are listed anew" in (
        " ".join(said.split())
    )


def test_shards_of_the_same_names_sizes_and_times_share_a_folder(tmp_path):
    """As unpacked from archives that set all times to one."""
    for number, place in enumerate("ab"):
        path = write_tar(tmp_path / place / "0.tar", {f"{number}.jpg": b"%d" % number})
        os.utime(path, (0, 0))
    found = [content(read_index(str(tmp_path / place), tmp_path / "index")) for place in "ab"]
    assert found == [{"0/0": b"0"}, {"0/1": b"1"}]


def test_a_remote_range_that_fails_once_is_asked_for_again(tmp_path, monkeypatch):
    expected = shards(tmp_path / "data", count=1)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "data"), "/test_flaky", recursive=True)
    index = read_index("memory://test_flaky", tmp_path / "remote")
    asked = []

    def cat_file(self, path, start=None, end=None, **_):
        asked.append((path, start))
        if asked.count((path, start)) <= failures:
            raise ConnectionResetError("reset by peer")
        return whole(self, path, start, end)

    whole = MemoryFileSystem.cat_file
    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr("shared.storage.failures._pause", lambda _: None)
    failures = 2
    assert content(index) == expected
    assert len(asked) == 3 * len(expected)
    failures, asked[:] = 6, []
    assert set(content(index).values()) == {"the file cannot be fetched: reset by peer"}
    memory.rm("/test_flaky", recursive=True)


def test_a_second_run_lists_nothing_and_a_changed_shard_is_listed_again(tmp_path, capsys):
    expected = shards(tmp_path / "data")
    first = read_index(str(tmp_path / "data"), tmp_path / "index")
    before = stamps(tmp_path / "index")
    assert len(before) == 3
    capsys.readouterr()
    assert content(read_index(str(tmp_path / "data"), tmp_path / "index")) == expected
    assert capsys.readouterr().err == ""
    write_tar(tmp_path / "data/00001.tar", {"new.jpg": b"new"})
    again = read_index(str(tmp_path / "data"), tmp_path / "index")
    kept = {key: data for key, data in expected.items() if not key.startswith("00001/")}
    assert content(again) == kept | {"00001/new": b"new"}
    assert before.items() < stamps(tmp_path / "index").items()
    assert again.fingerprint != first.fingerprint


def test_listing_that_was_stopped_goes_on_where_it_was(tmp_path):
    expected = shards(tmp_path / "data")
    last = tmp_path / "data/00002.tar"
    plain = last.read_bytes()
    write_tar(last, {"000.jpg": b"1"}, "w:gz")
    with pytest.raises(LvdError, match="compressed"):
        read_index(str(tmp_path / "data"), tmp_path / "index")
    before = stamps(tmp_path / "index")
    assert len(before) == 2
    assert len(list((tmp_path / "index").iterdir())) == 2
    last.write_bytes(plain)
    assert content(read_index(str(tmp_path / "data"), tmp_path / "index")) == expected
    assert before.items() < stamps(tmp_path / "index").items()


def test_several_processes_list_the_same_as_one(tmp_path, monkeypatch):
    shards(tmp_path / "data")
    read_index(str(tmp_path / "data"), tmp_path / "one")
    monkeypatch.setattr(train.data.index, "_LISTED_ALONE", 0)
    read_index(str(tmp_path / "data"), tmp_path / "several")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "several").iterdir())
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "several" / name).read_bytes()


def test_images_keep_their_fingerprint_where_the_shards_are_moved(tmp_path):
    shards(tmp_path / "data")
    first = read_index(str(tmp_path / "data"), tmp_path / "index")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    moved = read_index(str(tmp_path / "elsewhere"), tmp_path / "index")
    assert moved.fingerprint == first.fingerprint
    assert content(moved) == shards(tmp_path / "data")


def test_a_worker_is_sent_the_name_of_the_index_only(tmp_path):
    shards(tmp_path / "data", count=2, images=500)
    index = read_index(str(tmp_path / "data"), tmp_path / "index")
    sent = pickle.dumps(index)
    assert len(sent) < 1000
    assert content(pickle.loads(sent)) == content(index)


def test_a_sample_takes_24_bytes_and_its_key(tmp_path):
    expected = shards(tmp_path / "data", count=1, images=4000)
    read_index(str(tmp_path / "data"), tmp_path / "index")
    (path,) = (tmp_path / "index").glob("*.arrow")
    assert path.stat().st_size < 4000 * 25 + sum(map(len, expected))


def test_broken_members_stay_in_the_index_with_their_reason(tmp_path, capsys):
    path = write_tar(tmp_path / "data/a.tar", {"0.jpg": b"0" * 700, "1.heic": b"1"})
    huge = tarfile.TarInfo("2.jpg")
    huge.size = 3 << 30
    path.write_bytes(path.read_bytes()[: 5 * 512] + huge.tobuf() + bytes(1000))
    write_tar(tmp_path / "data/b.tar", {"0.jpg": b"b"})
    (tmp_path / "data/c.tar").write_bytes(b"no tar" * 300)
    index = read_index(str(tmp_path / "data"), tmp_path / "index")
    assert content(index) == {
        "a/0": b"0" * 700,
        "a/1": b"1",
        "a/2": "tar ends inside this member",
        "b/0": b"b",
    }
    assert [part.name for part in index.parts] == ["a", "b"]
    with pytest.raises(ImageError, match="tar ends inside"):
        index.read(2)
    said = capsys.readouterr().err
    assert "a.tar: tar ends early at byte 4072" in said
    assert "c.tar: not a tar file" in said


def test_shards_that_change_while_training_give_reasons(tmp_path):
    shards(tmp_path / "data")
    index = read_index(str(tmp_path / "data"), tmp_path / "index")
    paths = [tmp_path / f"data/{shard:05d}.tar" for shard in range(3)]
    assert index.read(0) == b"0-0"
    os.truncate(paths[0], 3000)
    paths[1].unlink()
    write_tar(paths[2], {"another.jpg": b"x" * 20_000})
    found = content(index)
    assert found["00000/000"] == b"0-0"
    assert found["00000/004"] == "the file ends early: 0 of 15 bytes"
    assert found["00001/000"] == "the file cannot be read: No such file or directory"
    assert "has changed since it was listed: 30720 bytes, not 20480" in found["00002/000"]


def test_of_many_shards_few_files_stay_open(tmp_path):
    expected = shards(tmp_path / "data", count=150, images=1)
    index = read_index(str(tmp_path / "data"), tmp_path / "index")

    def opened():
        links = [os.path.realpath(path) for path in Path("/proc/self/fd").glob("*")]
        return sum(link.startswith(str(tmp_path)) and link.endswith(".tar") for link in links)

    assert content(index) == expected
    assert opened() == 128
    assert [index.read(0) for _ in range(3)] == [expected["00000/000"]] * 3
    del index
    assert opened() == 0


def test_listings_agree_with_stage_one_where_keys_repeat(tmp_path):
    members = {
        "x.jpg": b"1",
        "x.png": b"2",
        "d/x.jpg": b"3",
        "bare": b"\xff\xd8\xff4",
        "note": b"5",
    }
    write_tar(tmp_path / "data/p.tar", members)
    (part,) = list_parts("p", DatasetSettings(path=str(tmp_path / "data")))
    with PartReader(part, tmp_path) as reader:
        expected = {member.key: reader.read(member) for member in reader.members}
    assert len(expected) == 4
    assert content(read_index(str(tmp_path / "data"), tmp_path / "index")) == expected


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda d: write_tar(d / "a.tar.gz", {"0.jpg": b"0"}, "w:gz"),
            "a compressed tar, .*unpack",
        ),
        (lambda d: pq.write_table(pa.table({"image": [b"0"]}), d / "a.parquet"), "a Parquet file,"),
        (lambda d: write_tar(d / "a.tar", {"0.txt": b"0"}), "no image is in its 1 shards"),
        (lambda d: None, "no images at .*nothing is there"),
        (lambda d: d.rmdir(), "no images at .*does not exist"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(tmp_path, make, words):
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    with pytest.raises(LvdError, match=f"^[^\n]*--shards[^\n]*{words}[^\n]*$"):
        read_index(str(tmp_path / "data"), tmp_path / "index")


def test_what_no_run_has_opened_for_long_is_removed_and_nothing_of_others(tmp_path):
    index = tmp_path / "index"
    shards(tmp_path / "gone")
    shards(tmp_path / "kept", count=2)
    read_index(str(tmp_path / "gone"), index)
    expected = content(read_index(str(tmp_path / "kept"), index))
    (index / "00000.parquet").touch()  # such as the table beside a shard
    (index / f".{'0' * 16}.arrow.{'a' * 32}").touch()  # of a killed run
    (index / f".{'1' * 16}.arrow.{'a' * 32}").touch()
    for path in index.iterdir():
        if not path.name.startswith(".1"):
            os.utime(path, (0, 0))
    assert content(read_index(str(tmp_path / "kept"), index)) == expected
    left = sorted(path.name for path in index.iterdir())
    assert len([name for name in left if name.endswith(".parquet")]) == 2 + 1
    assert len([name for name in left if name.endswith(".arrow")]) == 1
    assert "00000.parquet" in left
    assert len(left) == 2 + 1 + 1 + 1
