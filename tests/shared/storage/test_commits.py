"""Commits that are whole or nothing, killed at every system call that changes the disk."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import LvdError
from shared.storage.commits import (
    MANIFEST,
    PROGRESS,
    UnderWay,
    building,
    commit,
    committed,
    digest_of,
    discard,
    read_manifest,
    run_unit,
    under_way,
)
from shared.storage.files import digest_file, fingerprint

FILES = {"a.bin": b"a" * 5_000, "b.bin": b"b" * 70_000}

COMMIT_AND_DIE = """
import os, signal, sys
from pathlib import Path
from shared.storage.commits import run_unit
from test_commits import whole

root, flat = Path(sys.argv[1]), sys.argv[2] == "flat"
count = 0

def dying(function, moment):
    def call(*args, **named):
        global count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **named)
    return call

for moment in range(1, 100):
    child = os.fork()
    if not child:
        for name in ("mkdir", "rename", "fsync", "unlink", "rmdir"):
            setattr(os, name, dying(getattr(os, name), moment))
        place = root / str(moment)
        run_unit(whole, (flat,), place / "stage" / "00000", place / "scratch", flat)
        os._exit(0)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        break
print(moment)
"""


def whole(flat: bool, *, out: Path) -> dict:
    """A unit: two files, and in the flat layout its mark."""
    prefix = "00000_" if flat else ""
    for name, data in FILES.items():
        (out / f"{prefix}{name}").write_bytes(data)
    if flat:
        (out / "00000_stats.json").write_text(json.dumps({"files": 2}))
    return {"files": 2}


def never(flat: bool, *, out: Path) -> dict:
    raise AssertionError("a committed unit was computed again")


def files_of(root: Path, flat: bool) -> dict[str, bytes]:
    stage = root / "stage"
    paths = [stage / f"00000_{name}" if flat else stage / "00000" / name for name in FILES]
    return {path.name.removeprefix("00000_"): path.read_bytes() for path in paths}


@pytest.mark.parametrize("layout", ["folder", "flat"])
def test_a_commit_killed_at_any_system_call_is_whole_or_not_there(layout, tmp_path):
    flat = layout == "flat"
    here = Path(__file__).parent
    said = subprocess.run(
        [sys.executable, "-c", COMMIT_AND_DIE, str(tmp_path), layout],
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parents[2]}"},
        capture_output=True,
        text=True,
        check=True,
    )
    moments = int(said.stdout)
    assert 10 < moments < 99
    found = []
    for moment in range(1, moments + 1):
        root = tmp_path / str(moment)
        there = committed(root / "stage" / "00000", flat)
        found.append(there is not None)
        if there is not None:
            assert there == {"files": 2}
            assert files_of(root, flat) == FILES
        unit = never if there is not None else whole
        again = run_unit(unit, (flat,), root / "stage" / "00000", root / "scratch", flat)
        assert again == {"files": 2}
        assert files_of(root, flat) == FILES
    assert found == sorted(found)
    assert found[0] is False
    assert found[-1] is True


@pytest.mark.parametrize("flat", [False, True])
def test_a_committed_unit_is_not_computed_again(flat, tmp_path):
    where = tmp_path / "stage" / "00000", tmp_path / "scratch", flat
    assert run_unit(whole, (flat,), *where) == {"files": 2}
    assert run_unit(never, (flat,), *where) == {"files": 2}
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("flat", [False, True])
def test_two_tries_of_one_unit_at_once_leave_one_whole_unit(flat, tmp_path):
    where = tmp_path / "stage" / "00000", tmp_path / "scratch", flat

    def overtaken(flat: bool, *, out: Path) -> dict:
        result = whole(flat, out=out)
        run_unit(whole, (flat,), where[0], tmp_path / "other scratch", flat)
        return result

    assert run_unit(overtaken, (flat,), *where) == {"files": 2}
    assert files_of(tmp_path, flat) == FILES
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_unit_that_fails_leaves_no_trace(tmp_path):
    def failing(*, out: Path) -> dict:
        (out / "half").write_bytes(b"half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_unit(failing, (), tmp_path / "stage" / "00000", tmp_path / "scratch")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "stage" / "00000").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_that_says_where(number, tmp_path):
    def full(*, out: Path) -> dict:
        raise OSError(number, "no room", str(out))

    with pytest.raises(LvdError, match=f"no space left below {tmp_path / 'stage'}") as caught:
        run_unit(full, (), tmp_path / "stage" / "00000", tmp_path / "scratch")
    assert "\n" not in str(caught.value)


def test_other_errors_of_the_disk_are_what_they_are(tmp_path):
    def denied(*, out: Path) -> dict:
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        run_unit(denied, (), tmp_path / "stage" / "00000", tmp_path / "scratch")


@pytest.fixture
def unit(tmp_path) -> Path:
    """A committed folder of two files."""
    run_unit(whole, (False,), tmp_path / "stage" / "00000", tmp_path / "scratch")
    return tmp_path / "stage" / "00000"


def test_the_manifest_lists_every_file_and_is_sealed(unit):
    manifest = read_manifest(unit)
    assert manifest["result"] == {"files": 2}
    assert manifest["files"] == {
        name: {"bytes": len(data), "sha256": digest_file(unit / name)}
        for name, data in FILES.items()
    }
    assert json.loads((unit / MANIFEST).read_text())["seal"] == fingerprint(manifest)


def test_what_a_unit_is_worth_depends_on_its_files_alone(tmp_path):
    digests = []
    for place, result, data, used in [
        ("a", {"n": 1}, b"x", {"device": "cpu"}),
        ("b", {"n": 1}, b"x", {"device": "cuda"}),
        ("c", {"n": 1}, b"y", {"device": "cpu"}),
    ]:
        with building(tmp_path / "stage" / place, tmp_path / "scratch") as beside:
            (beside / "file").write_bytes(data)
            UnderWay(3, 5, 7).write(beside)
            with building(tmp_path / "another", tmp_path / "scratch") as other:
                UnderWay(1, 2, 3).write(other)
                assert under_way(tmp_path / "scratch") == UnderWay(4, 7, 10)
                (other / PROGRESS).write_text("1 2")  # half written
                assert under_way(tmp_path / "scratch") == UnderWay(4, 7, 7)
                (other / PROGRESS).write_text("")
                assert under_way(tmp_path / "scratch") == UnderWay(3, 5, 7)
            assert commit(beside, tmp_path / "stage" / place, result, used) == result
        assert read_manifest(tmp_path / "stage" / place)["runtime"] == used
        assert not (tmp_path / "stage" / place / PROGRESS).exists()
        digests.append(digest_of(tmp_path / "stage" / place))
    assert digests[0] == digests[1] != digests[2]
    assert under_way(tmp_path / "scratch") == UnderWay()


@pytest.mark.parametrize("byte", [b"\x00", b"9", b"}"])
def test_a_damaged_manifest_is_one_line_or_no_commit(unit, byte):
    path = unit / MANIFEST
    content = path.read_bytes()
    said = set()
    for at in range(len(content)):
        path.write_bytes(content[:at] + byte + content[at + 1 :])
        try:
            found = read_manifest(unit)
        except LvdError as error:
            said.add(str(error).partition(":")[0])
        else:
            unsealed = found is None and b'"seal"' not in path.read_bytes()
            assert unsealed or found["result"] == {"files": 2}
    assert said == {f"{path} is damaged"}


def test_a_unit_without_its_manifest_is_computed_again(unit, tmp_path):
    (unit / MANIFEST).unlink()
    (unit / "a.bin").write_bytes(b"half")
    assert committed(unit) is None
    assert run_unit(whole, (False,), unit, tmp_path / "scratch") == {"files": 2}
    assert files_of(tmp_path, False) == FILES
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_discarded_unit_is_gone_and_can_be_made_again(unit, tmp_path):
    (tmp_path / "scratch").rmdir()
    for _ in range(2):  # a unit that is not there is discarded as well
        discard(unit, tmp_path / "scratch")
        assert committed(unit) is None
        assert not unit.exists()
        assert list((tmp_path / "scratch").iterdir()) == []
    assert run_unit(whole, (False,), unit, tmp_path / "scratch") == {"files": 2}
    assert files_of(tmp_path, False) == FILES
