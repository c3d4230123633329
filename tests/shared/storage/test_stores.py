"""Units and notes of a folder behind a URL, and the lease of a place there."""

import json
import os
import socket
import subprocess
import sys

import fsspec
import pytest
from s3_server import Fault

import shared.storage.leases
from shared.errors import LvdError
from shared.storage.commits import MANIFEST, committed, discard, run_unit
from shared.storage.leases import leased
from shared.storage.stores import is_there, new_copy, opened, publish, store_of

URL, LEASE = "s3://bucket/work", "s3://bucket/runs/.out.lock"
LARGE = 101 << 20
"""Bytes of a file that the client stores in several parts."""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("shared.storage.failures._pause", lambda seconds: None)


def unit(out, *, text="text", size=0):
    """Fill a unit's folder."""
    (out / "text.txt").write_text(text)
    if size:
        (out / "large.bin").write_bytes(bytes(range(256)) * (size // 256))
    return {"said": text}


def compute(work, name="stage/address/0", **about):
    return run_unit(lambda out: unit(out, **about), (), work / name, work / "scratch")


def test_a_unit_is_there_for_the_next_process_and_not_computed_again(s3):
    with opened(URL, "--work", "marker") as work:
        assert compute(work) == {"said": "text"}
    assert set(s3.get("work")) == {
        "marker",
        "stage/address/0/text.txt",
        f"stage/address/0/{MANIFEST}",
    }
    with opened(URL, "--work", "marker") as work:
        out = work / "stage/address/0"
        assert committed(out) == {"said": "text"}
        assert (out / "text.txt").read_text() == "text"
        assert compute(work, text="other") == {"said": "text"}
        assert committed(work / "stage/address/1") is None


def test_the_manifest_of_a_unit_is_stored_last_and_removed_first(s3):
    with opened(URL, "--work", "marker") as work:
        s3.requests.clear()
        compute(work)
        stored = [each.path for each in s3.requests if each.method == "PUT"]
        assert [path.rpartition("/")[2] for path in stored] == ["text.txt", MANIFEST]
        s3.requests.clear()
        discard(work / "stage/address/0", work / "scratch")
        gone = [each for each in s3.requests if each.method in ("DELETE", "POST")]
        assert gone[0].path.endswith(MANIFEST)
        assert committed(work / "stage/address/0") is None
    assert set(s3.get("work")) == {"marker"}


def test_a_unit_whose_manifest_was_not_stored_is_none(s3):
    s3.faults.append(Fault("SlowDown", "PUT", MANIFEST))
    with opened(URL, "--work", "marker") as work:
        with pytest.raises(OSError, match="so it is"):
            compute(work)
        assert not (work / "stage/address/0").exists()
    s3.faults.clear()
    with opened(URL, "--work", "marker") as work:
        assert committed(work / "stage/address/0") is None
        assert compute(work, text="other") == {"said": "other"}


def test_a_large_file_is_stored_in_parts_and_fetched_through_failures(s3):
    s3.faults += [Fault("reset", "PUT", "large.bin", every=2, times=1)]
    with opened(URL, "--work", "marker") as work:
        compute(work, size=LARGE)
        first = (work / "stage/address/0/large.bin").read_bytes()
    assert s3.faults[0].failed
    assert any("partNumber=2" in each.query for each in s3.requests)
    s3.faults[:] = [Fault("cut", "GET", "large.bin", times=1)]
    with opened(URL, "--work", "marker") as work:
        assert committed(work / "stage/address/0") == {"said": "text"}
        assert (work / "stage/address/0/large.bin").read_bytes() == first
    assert s3.faults[0].failed


def test_a_file_that_does_not_arrive_as_it_was_stored_is_an_error(s3):
    with opened(URL, "--work", "marker") as work:
        compute(work)
    fsspec.filesystem("s3").pipe_file("bucket/work/stage/address/0/text.txt", b"TEXT")
    with opened(URL, "--work", "marker") as work:
        with pytest.raises(ConnectionError, match="did not arrive as it was stored"):
            (work / "stage/address/0/text.txt").read_text()
        assert not (work / "stage/address/0").exists()


def test_a_damaged_manifest_is_one_line_with_its_url(s3):
    fsspec.filesystem("s3").pipe_file(f"bucket/work/stage/address/0/{MANIFEST}", b"{}{")
    said = f"{URL}/stage/address/0/{MANIFEST} is damaged"
    with opened(URL, "--work", "marker") as work, pytest.raises(LvdError, match=said):
        committed(work / "stage/address/0")


@pytest.mark.parametrize("name", ["../../../outside", "/outside", "in/side", ".."])
def test_a_manifest_that_names_files_elsewhere_is_refused(s3, name):
    manifest = json.dumps({"files": {name: {"bytes": 1, "sha256": "0" * 64}}}).encode()
    fsspec.filesystem("s3").pipe_file(f"bucket/work/stage/address/0/{MANIFEST}", manifest)
    with opened(URL, "--work", "marker") as work, pytest.raises(LvdError, match="of its unit"):
        (work / "stage/address/0/text.txt").read_text()


def test_a_note_is_there_for_the_next_process(s3):
    with opened(URL, "--work", "marker") as work:
        (work / "notes").mkdir()
        (work / "notes/a").write_text("b")
        assert publish(work / "notes/a") == f"{URL}/notes/a"
    with opened(URL, "--work", "marker") as work:
        assert is_there(work / "notes/a")
        assert (work / "notes/a").read_text() == "b"
        assert not is_there(work / "notes/b")


def test_a_local_folder_is_no_copy(tmp_path):
    assert store_of(tmp_path / "a/b") is None
    (tmp_path / "a").write_text("")
    assert publish(tmp_path / "a") == str(tmp_path / "a")


def test_a_copy_is_gone_at_the_end_and_after_a_kill(tmp_path):
    code = (
        "import os, signal, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from shared.storage.stores import new_copy\n"
        "with new_copy() as copy:\n"
        "    (copy / 'file').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert [path for path in (tmp_path / "lvd-stores").iterdir() if path.is_dir()]
    with new_copy() as copy:
        left = [path for path in (tmp_path / "lvd-stores").iterdir() if path.is_dir()]
        assert left == [copy]
    assert not [*(tmp_path / "lvd-stores").iterdir()]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://nowhere/work", "it is not there"),
        ("nonsense://bucket/work", "name a folder, or a URL that fsspec reads"),
    ],
)
def test_a_store_that_is_none_is_one_line(s3, url, said):
    with pytest.raises(LvdError, match=said) as raised, opened(url, "--work", "marker"):
        pass
    assert str(raised.value).startswith(f"--work {url}: ")
    assert "\n" not in str(raised.value)


def test_a_lease_has_one_holder_and_goes_with_it(s3):
    with leased(LEASE, "busy"):
        assert json.loads(s3.get("runs")[".out.lock"])["pid"] == os.getpid()
        with pytest.raises(LvdError, match="busy"), leased(LEASE, "busy"):
            pass
    assert s3.get("runs") == {}
    with leased(LEASE, "busy"):
        pass


def held_by(**about) -> None:
    said = {"host": socket.gethostname(), "pid": os.getpid(), "began": "x", "token": "t", **about}
    fsspec.filesystem("s3").pipe_file(LEASE.removeprefix("s3://"), json.dumps(said).encode())


def test_the_lease_of_a_dead_process_of_this_host_is_taken_over(s3):
    held_by(began="another time")
    with leased(LEASE, "busy") as lease:
        lease.require("place")
        assert json.loads(s3.get("runs")[".out.lock"])["token"] == lease.content["token"]
    assert s3.get("runs") == {}


def test_a_lease_of_another_host_counts_while_it_is_renewed(s3, monkeypatch):
    monkeypatch.setattr(shared.storage.leases, "LAPSE", 1.0)
    monkeypatch.setattr(shared.storage.leases, "WATCHED", 0.1)
    held_by(host="elsewhere", renewed=0)
    with leased(LEASE, "busy"):  # nobody renews it
        pass
    held_by(host="elsewhere", renewed=0)
    look = shared.storage.leases._look

    def renewed(system, path):
        found = look(system, path)
        held_by(host="elsewhere", renewed=found[0]["renewed"] + 1)
        return found

    monkeypatch.setattr(shared.storage.leases, "_look", renewed)
    with pytest.raises(LvdError, match="busy"), leased(LEASE, "busy"):
        pass


def test_a_lease_that_another_process_took_over_is_lost(s3, monkeypatch):
    monkeypatch.setattr(shared.storage.leases, "RENEWED", 0.05)
    with leased(LEASE, "busy") as lease:
        held_by(token="other")
        for _ in range(600):
            if lease.lost:
                break
            lease._end.wait(0.05)
        with pytest.raises(LvdError, match="has taken over place"):
            lease.require("place")
    assert json.loads(s3.get("runs")[".out.lock"])["token"] == "other"
