"""Storage that fails: for a moment it costs nothing, else it is never the fault of an image."""

import gzip
import os
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failing_storage import FATAL, TRANSIENT, Rule, calls, failing, script
from part_reading import png, write_tar

from curate.catalogue.content import local_copy
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.parts import PartReader
from shared.datasets.single_images import direct, fetch
from shared.errors import LvdError
from shared.pictures.images import ImageError
from shared.storage.failures import kind_of
from shared.storage.remote import open_binary, read_range

FORMATS = ("tar", "tgz", "folder", "parquet")


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """Return what makes `failing://` of this test fail by some rules."""
    folder = tmp_path / "script"

    def fail(*rules):
        monkeypatch.setenv("FAILING_STORAGE", script(folder, *rules)["FAILING_STORAGE"])
        return folder

    fail()
    return fail


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder with the same pictures in each of FORMATS, larger than a block."""
    root = tmp_path_factory.mktemp("data")
    noise = [bytes([n]) * 5 + os.urandom(9_000) for n in range(12)]
    members = [(f"{n:02d}.jpg", noise[n]) for n in range(12)] + [("03.txt", b"three")]
    for name in FORMATS:
        (root / name / "inner").mkdir(parents=True)
    write_tar(root / "tar/0.tar", members)
    (root / "tgz/0.tgz").write_bytes(gzip.compress((root / "tar/0.tar").read_bytes(), mtime=0))
    table = pa.table({"key": [n[:2] for n, _ in members[:12]], "url": ["u"] * 12})
    pq.write_table(table, root / "tar/0.parquet")
    pq.write_table(table.append_column("image", pa.array(noise)), root / "parquet/0.parquet")
    for name, content in members:
        (root / "folder/inner" / name).write_bytes(content)
    (root / "folder" / "bare").write_bytes(png())
    return root


def contents(path, scratch):
    """Return by key what is said of every image and its bytes, fetched in each way there is."""
    found = {}
    for part in list_parts("crawl", DatasetSettings(path=str(path), folder_parts=2)):
        with PartReader(part, scratch) as reader:
            assert reader.problems == []
            for member in reader.members:
                found[member.key] = (member.url, member.caption, reader.read(member))
                if direct(part):
                    again = fetch(part, member.member, member.offset, member.size)
                    assert again == found[member.key][2]
    assert found
    return found


@pytest.mark.parametrize("way", [*TRANSIENT, "short"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_moment_of_failure_anywhere_costs_nothing(data, tmp_path, storage, name, way):
    expected = contents(data / name, tmp_path)
    calls = ("read",) if way == "short" else ("info", "list", "open", "read")
    for call in calls:
        for skip in (0, 1, 3):
            storage(Rule(call, way, skip=skip, times=3))
            assert contents(failing(data / name), tmp_path) == expected


@pytest.mark.parametrize("way", TRANSIENT)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        (name, call)
        for name in FORMATS
        for call in ("info", "list", "open", "read")
        if (name, call) != ("folder", "open")  # its files are read in one request each
    ],
)
def test_what_does_not_pass_is_raised_as_a_failure_of_the_storage(
    data, tmp_path, storage, name, call, way
):
    folder = storage(Rule(call, way))
    with pytest.raises(Exception) as caught:
        contents(failing(data / name), tmp_path)
    listing = isinstance(caught.value, LvdError)
    assert listing or kind_of(caught.value) == "transient"
    assert not isinstance(caught.value, ImageError)
    assert calls(folder) == {"0": 6}
    assert "run the same command again" in str(caught.value) or not listing


@pytest.mark.parametrize("way", FATAL)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_refused_or_gone_after_listing_is_no_property_of_an_image(
    data, tmp_path, storage, name, way
):
    parts = list_parts("crawl", DatasetSettings(path=failing(data / name)))
    folder = storage(Rule("open", way), Rule("read", way))
    for part in parts:
        with pytest.raises(Exception) as caught, PartReader(part, tmp_path) as reader:
            reader.read(reader.members[0])
        assert kind_of(caught.value) == "fatal"
        assert not isinstance(caught.value, ImageError)
    assert sum(calls(folder).values()) == len(parts)  # at once


@pytest.mark.parametrize("way", FATAL)
def test_a_listing_that_is_refused_is_one_line(data, storage, way):
    storage(Rule("list", way), Rule("info", way))
    with pytest.raises(LvdError, match=r"^dataset 'crawl': ") as caught:
        list_parts("crawl", DatasetSettings(path=failing(data / "folder")))
    assert "\n" not in str(caught.value)
    assert ("credentials" in str(caught.value)) == (
        way in ("expired", "no credentials", "forbidden")
    )


def test_a_folder_that_fails_for_a_moment_is_not_left_out(data, tmp_path, storage):
    expected = contents(data / "folder", tmp_path)
    storage(Rule("list", "lost", path="*/inner", times=5))
    assert contents(failing(data / "folder"), tmp_path) == expected
    assert contents(failing(data / "folder/*"), tmp_path).keys() == {f"{key}" for key in expected}
    storage(Rule("list", "forbidden", path="*/inner"))
    with pytest.raises(LvdError, match=r"inner: it may not be read"):
        contents(failing(data / "folder"), tmp_path)


def test_a_stream_goes_on_where_it_broke(data, storage):
    path = data / "tgz/0.tgz"
    folder = storage(*(Rule("read", "lost", skip=n, times=1) for n in (1, 3, 4, 6)))
    with open_binary(failing(path)) as stream:
        assert stream.read() == path.read_bytes()
        for place in (70_000, 3, 50_000):
            stream.seek(place)
            assert stream.read(100) == path.read_bytes()[place : place + 100]
    assert max(calls(folder).values()) > 6
    assert read_range(failing(path), 1000, 90_000) == path.read_bytes()[1000:91_000]


def test_a_stream_does_not_go_on_in_another_file(tmp_path, storage):
    path = tmp_path / "file"
    path.write_bytes(bytes(1_000_000))
    storage(Rule("read", "lost", skip=1, times=1))
    with open_binary(failing(path)) as stream:
        stream.read(10)
        path.write_bytes(b"1" * 1_000_000)
        os.utime(path, (1, 1))
        with pytest.raises(LvdError, match="changed while it was read: run the same command"):
            stream.read()


def test_a_stream_that_cannot_seek_is_read_like_any_other(data, storage, monkeypatch):
    import failing_storage

    def seek(self, place, whence=0):
        raise ValueError("Cannot seek streaming file")

    monkeypatch.setattr(failing_storage.FailingFile, "seek", seek)
    path = data / "tar/0.tar"
    storage(Rule("read", "lost", skip=2, times=1))
    with open_binary(failing(path)) as stream:
        assert stream.read(2) == path.read_bytes()[:2]
        stream.seek(0)
        assert stream.read() == path.read_bytes()


@pytest.mark.parametrize("where", [str, failing])
def test_a_file_that_became_shorter_is_said_to_have_changed(tmp_path, storage, where):
    (tmp_path / "file").write_bytes(b"1" * 500)
    assert read_range(where(tmp_path / "file"), 100, 400) == b"1" * 400
    with pytest.raises(LvdError, match="ends at byte 500, before byte 600: it changed"):
        read_range(where(tmp_path / "file"), 100, 500)


def test_other_processes_know_the_file_system_and_count_with_us(data, tmp_path):
    environment = script(tmp_path, Rule("read", "throttled", times=3))
    program = (
        "import sys; from shared.storage.remote import read_range\n"
        "sys.stdout.buffer.write(read_range(sys.argv[1], 0, 5))"
    )
    for expected in (4, 5):
        done = subprocess.run(
            [sys.executable, "-c", program, failing(data / "tar/0.tar")],
            env={**os.environ, **environment},
            capture_output=True,
            check=True,
        )
        assert done.stdout == b"00.jp"
        assert calls(tmp_path) == {"0": expected}


@pytest.mark.parametrize("number", [5, 116])  # EIO, ESTALE
def test_a_network_drive_that_fails_for_a_moment_is_asked_again(data, monkeypatch, number):
    monkeypatch.setattr("shared.storage.failures._pause", lambda _: None)
    errors = [OSError(number, os.strerror(number))] * 2
    pread = os.pread

    def flaky(*asked):
        if errors:
            raise errors.pop()
        return pread(*asked)

    monkeypatch.setattr(os, "pread", flaky)
    path = data / "tar/0.tar"
    assert read_range(str(path), 0, 1000) == path.read_bytes()[:1000]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(116, "Stale")])
def test_a_local_file_that_may_not_be_read_is_no_property_of_its_image(
    tmp_path, monkeypatch, error
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jpg").write_bytes(b"1")
    (tmp_path / "data/link.jpg").symlink_to("nowhere")
    (part,) = list_parts("crawl", DatasetSettings(path=str(tmp_path / "data"), folder_parts=1))
    monkeypatch.setattr("shared.storage.failures._pause", lambda _: None)

    def refuse(*_):
        raise error

    with PartReader(part, tmp_path) as reader:
        image, link = reader.members
        monkeypatch.setattr(os, "pread", refuse)  # root may read everything
        with pytest.raises(OSError) as caught:
            reader.read(image)
        assert caught.value is error
        with pytest.raises(ImageError, match="a link that leads to no file"):
            reader.read(link)


class Untold(SimpleHTTPRequestHandler):
    """Serves files and links to them, and says of none how long it is."""

    def send_header(self, keyword, value):
        if keyword not in ("Content-Length", "Last-Modified"):
            super().send_header(keyword, value)

    def log_message(self, *_):
        pass


@pytest.fixture
def untold(data):
    """The URL of a web server of `data` that tells no sizes."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Untold, directory=data)) as server:
        server.handle_error = lambda *_: None  # of readers that have enough
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "path", ["tar/0.tar", "tgz/*.tgz", "folder/inner/*", "parquet/{0,0}.parquet"]
)
def test_a_web_server_need_not_say_how_long_files_are(data, tmp_path, untold, path):
    dataset = DatasetSettings(path=f"{untold}/{path}", folder_parts=2)
    ours = list_parts("crawl", DatasetSettings(path=str(data / path), folder_parts=2))
    for part, local in zip(list_parts("crawl", dataset), ours, strict=True):
        assert set(part.sizes) == {None}
        assert part.stamp == ""  # so that its bytes are read in every run
        with local_copy(part, tmp_path) as copy, local_copy(local, tmp_path) as same:
            assert copy.content == same.content
            assert copy.part.sizes == local.sizes
            assert copy.part.nbytes >= local.nbytes  # bounds what a compressed tar may grow to
    assert contents(f"{untold}/{path}", tmp_path) == contents(data / path, tmp_path)
