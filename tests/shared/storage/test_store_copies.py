"""The folders of machines that stand for a store: paths travel between them, and they stay small."""

import os
import pickle
from pathlib import Path

import pytest

from shared.storage.commits import MANIFEST, committed, run_unit
from shared.storage.locks import scratch_folder
from shared.storage.store_copies import MARK, copy_here, make_room, mark, new_copy, remove_copy_here
from shared.storage.stores import StoredPath, opened, publish, remove_given

URL = "s3://bucket/work"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that goes on as on the machine of that name."""

    def move(name):
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        monkeypatch.setattr("tempfile.tempdir", str(home))
        copy_here.cache_clear()
        return home

    yield move
    copy_here.cache_clear()


def write(out, size=4):
    (out / "data.bin").write_bytes(b"x" * size)
    return {"bytes": size}


def compute(work, name="stage/address/0", size=4):
    run_unit(lambda out: write(out, size), (), work / name, work / "scratch")
    return work / name / "data.bin"


def asked(s3):
    """Return what was asked of the server since the last time, without the bucket."""
    said = [(each.method, each.path.removeprefix("/bucket/work/")) for each in s3.requests]
    s3.requests.clear()
    return said


def test_a_path_leads_to_the_same_file_on_another_machine(s3, machine):
    first = machine("first")
    with opened(URL, "--work", "marker") as work:
        sent = pickle.dumps([work, compute(work), work / "stage" / "address"])
        second = machine("second")
        there, data, folder = pickle.loads(sent)
        assert data.read_bytes() == b"xxxx"
        assert {Path(str(each)).relative_to(second / "lvd-stores") for each in (there, folder)} == {
            Path(work.name),
            Path(work.name, "stage", "address"),
        }
        compute(there, "stage/address/1", 5)
        machine("first")
        assert committed(work / "stage/address/1") == {"bytes": 5}
        assert (work / "stage/address/1/data.bin").stat().st_size == 5
        assert str(work).startswith(str(first))


def test_a_unit_costs_two_questions_and_a_request_for_each_file_and_is_fetched_once(s3, machine):
    machine("first")
    with opened(URL, "--work", "marker") as work:
        asked(s3)
        assert committed(work / "stage/address/0") is None
        data = compute(work)
        manifest, file = (f"stage/address/0/{name}" for name in (MANIFEST, "data.bin"))
        assert asked(s3) == [("GET", manifest)] * 2 + [("PUT", file), ("PUT", manifest)]
        sent = pickle.dumps(data)
        machine("second")
        for _ in range(2):
            assert pickle.loads(sent).read_bytes() == b"xxxx"
        assert asked(s3) == [("GET", manifest), ("GET", file)]


def test_a_file_of_the_runs_scratch_comes_with_its_path_and_goes_with_the_run(s3, machine):
    machine("first")
    with opened(URL, "--work", "marker") as work, scratch_folder(work / "scratch") as scratch:
        (scratch / "parts.json").write_text("[]")
        publish(scratch / "parts.json")
        sent = pickle.dumps(scratch / "parts.json")
        second = machine("second")
        there = Path(str(pickle.loads(sent)))
        assert there.is_relative_to(second)
        assert there.read_text() == "[]"
        remove_given(scratch)
        assert set(s3.get("work")) == {"marker"}


def test_units_that_were_not_opened_for_long_make_room_and_are_fetched_again(s3, machine):
    machine("first")
    with opened(URL, "--work", "marker") as work:
        mark(Path(str(work)), URL, 3000)
        files = [compute(work, f"stage/address/{number}", 500) for number in range(4)]
        for number, file in enumerate(files):
            os.utime(str(file.parent), (number, number))
        files[0].read_bytes()  # the oldest no more
        make_room(Path(str(work)), 3000)
        here = [os.path.exists(str(file)) for file in files]  # noqa: PTH110
        assert here[0]
        assert not here[1]
        assert files[1].read_bytes() == b"x" * 500


def test_a_copy_is_held_by_who_uses_it_and_goes_when_the_next_is_made(s3, machine):
    home = machine("node") / "lvd-stores"
    with opened(URL, "--work", "marker") as work:
        assert copy_here(URL, 1, work.name) == Path(str(work))  # the command runs here
        remove_copy_here(work.name)
        assert (work / MARK).exists()
    pid = os.fork()
    if pid == 0:
        copy_here(URL, 1, "theirs")
        os._exit(0)
    os.waitpid(pid, 0)
    mine = copy_here(URL, 1, "mine")
    assert (home / "theirs").exists()
    with new_copy():
        assert mine.exists()
        assert not (home / "theirs").exists()
    remove_copy_here("mine")
    assert not mine.exists()


def test_a_path_outside_of_a_copy_is_sent_as_it_is(tmp_path):
    assert pickle.loads(pickle.dumps(StoredPath(tmp_path / "x"))) == tmp_path / "x"
