"""Commits that are whole or nothing, killed at every system call that changes the disk."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import LvdError
from shared.storage import commit_unit, committed, digest_file, fingerprint, read_json, write_json

FILES = {"a.bin": b"a" * 5_000, "b.bin": b"b" * 70_000}

COMMIT_AND_DIE = """
import os, signal, sys
from pathlib import Path
from shared.storage import commit_unit
from test_storage import whole

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
        commit_unit(whole, (flat,), place / "stage" / "00000", place / "scratch", flat)
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
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}"},
        capture_output=True,
        text=True,
        check=True,
    )
    moments = int(said.stdout)
    assert 10 < moments < 99
    found = []
    for moment in range(1, moments + 1):
        root = tmp_path / str(moment)
        there = committed(root / "stage" / "00000", flat, {})
        found.append(there is not None)
        if there is not None:
            assert there == {"files": 2}
            assert files_of(root, flat) == FILES
        unit = never if there is not None else whole
        again = commit_unit(unit, (flat,), root / "stage" / "00000", root / "scratch", flat)
        assert again == {"files": 2}
        assert files_of(root, flat) == FILES
    assert found == sorted(found)
    assert found[0] is False
    assert found[-1] is True


@pytest.mark.parametrize("flat", [False, True])
def test_a_committed_unit_is_not_computed_again(flat, tmp_path):
    where = tmp_path / "stage" / "00000", tmp_path / "scratch", flat
    assert commit_unit(whole, (flat,), *where) == {"files": 2}
    assert commit_unit(never, (flat,), *where) == {"files": 2}
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("flat", [False, True])
def test_two_tries_of_one_unit_at_once_leave_one_whole_unit(flat, tmp_path):
    where = tmp_path / "stage" / "00000", tmp_path / "scratch", flat

    def overtaken(flat: bool, *, out: Path) -> dict:
        result = whole(flat, out=out)
        commit_unit(whole, (flat,), where[0], tmp_path / "other scratch", flat)
        return result

    assert commit_unit(overtaken, (flat,), *where) == {"files": 2}
    assert files_of(tmp_path, flat) == FILES
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_unit_that_fails_leaves_no_trace(tmp_path):
    def failing(*, out: Path) -> dict:
        (out / "half").write_bytes(b"half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        commit_unit(failing, (), tmp_path / "stage" / "00000", tmp_path / "scratch")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "stage" / "00000").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_that_says_where(number, tmp_path):
    def full(*, out: Path) -> dict:
        raise OSError(number, "no room", str(out))

    with pytest.raises(LvdError, match=f"no space left below {tmp_path / 'stage'}") as caught:
        commit_unit(full, (), tmp_path / "stage" / "00000", tmp_path / "scratch")
    assert "\n" not in str(caught.value)


def test_other_errors_of_the_disk_are_what_they_are(tmp_path):
    def denied(*, out: Path) -> dict:
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        commit_unit(denied, (), tmp_path / "stage" / "00000", tmp_path / "scratch")


def test_a_unit_whose_mark_is_missing_is_not_committed(tmp_path):
    commit_unit(whole, (False,), tmp_path / "stage" / "00000", tmp_path / "scratch")
    (tmp_path / "stage" / "00000" / "unit.json").unlink()
    assert committed(tmp_path / "stage" / "00000", False, {"00000": {"files": 2}}) is None


def test_write_json_replaces_the_file_whole(tmp_path):
    path, scratch = tmp_path / "run.json", tmp_path / "scratch"
    scratch.mkdir()
    write_json(path, {"b": 1, "a": [None, "ü"]})
    first = path.read_bytes()
    write_json(path, {"a": [None, "ü"], "b": 1}, scratch)
    assert path.read_bytes() == first
    with pytest.raises(TypeError):
        write_json(path, {"a": object()}, scratch)
    assert path.read_bytes() == first
    assert read_json(path) == {"a": [None, "ü"], "b": 1}
    assert sorted(tmp_path.rglob("*")) == [path, scratch]


def test_digest_is_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert digest_file(tmp_path / "x").startswith("ba7816bf8f01cfea")


VALUES = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=4)


@given(VALUES, VALUES)
def test_fingerprints_are_equal_where_values_are(a, b):
    assert (fingerprint(a) == fingerprint(b)) == (a == b)
    assert fingerprint(a) == fingerprint(dict(reversed(a.items())))
