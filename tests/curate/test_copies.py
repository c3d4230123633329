"""A finished result stands whole in every place it is copied to, or OUT is whole and one line says why."""

import json
import shutil

import fsspec
import pyarrow.parquet as pq
import pytest
from failing_storage import FailingFileSystem
from fsspec.implementations.local import LocalFileSystem
from made_collection import files_of

from curate.execution import copies
from curate.execution.copies import NOTE, copy_result, require_places
from shared.errors import LvdError


def asked(small_run, *places):
    return small_run("run", f"--out={small_run.out}", f"--set=export.also=[{', '.join(places)}]")


class CutError(Exception):
    """Stands for a kill."""


@pytest.fixture
def cut(monkeypatch):
    """Let the copying end at the n-th call of a method of the local file system."""

    def after(count, method="put_file"):
        original = getattr(LocalFileSystem, method)
        calls = []

        def counted(self, *args, **named):
            calls.append(args)
            if len(calls) > count:
                raise CutError
            return original(self, *args, **named)

        monkeypatch.setattr(LocalFileSystem, method, counted)
        return lambda: monkeypatch.setattr(LocalFileSystem, method, original)

    return after


def test_a_result_is_copied_to_every_place_once(small_run):
    memory = fsspec.filesystem("memory")
    place = small_run.root / "copies" / "a b"
    status, said = asked(small_run, str(place), "memory://copies/here")
    assert (status, files_of(place)) == (0, files_of(small_run.out))
    there = {path: memory.cat_file(path) for path in memory.find("/copies/here")}
    assert there == {f"/copies/here/{n}": data for n, data in files_of(small_run.out).items()}
    assert small_run("verify", place)[0] == 0
    status, said = asked(small_run, str(place), "memory://copies/here")
    assert status == 0
    assert sum("holds a copy already" in line for line in said) == 2
    memory.rm("/copies", recursive=True)


@pytest.mark.parametrize(
    ("method", "count"),
    [*(("put_file", n) for n in range(2)), *(("mv", n) for n in range(3))]
    + [("rm_file", n) for n in range(4)],
)
def test_a_copy_that_was_cut_off_goes_on_and_is_no_result_before(small_run, cut, method, count):
    place, elsewhere = small_run.root / "copy", small_run.root / "other"
    shutil.copytree(small_run.out, elsewhere)
    (elsewhere / "reports" / "images.parquet").write_bytes(b"of another run")
    listed = json.loads((elsewhere / "files.json").read_text())
    del listed["reports/funnel.json"]
    (elsewhere / "reports" / "funnel.json").unlink()
    listed["reports/images.parquet"] |= {"bytes": 14, "sha256": "another"}
    listed["reports/gone.txt"] = {"bytes": 3, "sha256": "old"}
    (elsewhere / "reports" / "gone.txt").write_text("old")
    (elsewhere / "files.json").write_text(json.dumps(listed))
    (elsewhere / "run.json").write_text("{}")
    copy_result(elsewhere, str(place))
    undo = cut(count, method)
    with pytest.raises(LvdError, match="CutError"):
        copy_result(small_run.out, str(place))
    undo()
    if (place / "run.json").exists():  # of the earlier copy as a whole, or of this one
        expected = (
            files_of(elsewhere) if (method, count) == ("rm_file", 0) else files_of(small_run.out)
        )
        assert {n: data for n, data in files_of(place).items() if n != NOTE} == expected
    copy_result(small_run.out, str(place))
    assert files_of(place) == files_of(small_run.out)
    assert copy_result(small_run.out, str(place)) == 0


def test_only_what_is_missing_is_copied_again(small_run, cut, monkeypatch):
    place = small_run.root / "copy"
    monkeypatch.setattr(copies, "AT_ONCE", 1)
    undo = cut(7)
    with pytest.raises(LvdError):
        copy_result(small_run.out, str(place))
    undo()
    assert not (place / "run.json").exists()
    assert copy_result(small_run.out, str(place)) == len(files_of(small_run.out)) - 7


def test_a_place_that_fails_costs_the_others_and_out_nothing(small_run, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FailingFileSystem, "put_file", refuse)
    monkeypatch.setattr(FailingFileSystem, "pipe_file", refuse)
    place = small_run.root / "copy"
    status, said = asked(small_run, f"failing://{small_run.root}/refused", str(place))
    assert status == 1
    [line] = [line for line in said if line.startswith("lvd-curate: ")]
    assert "export.also failing://" in line
    assert "is whole" in line
    assert files_of(place) == files_of(small_run.out)
    assert small_run("verify", small_run.out)[0] == 0


def test_what_fails_for_a_moment_is_tried_again(small_run, monkeypatch):
    monkeypatch.setattr("shared.storage.failures._pause", lambda seconds: None)
    original, failures = LocalFileSystem.put_file, []

    def now_and_then(self, *args, **named):
        failures.append(args)
        if len(failures) % 3 == 1:
            raise TimeoutError("no answer")
        return original(self, *args, **named)

    monkeypatch.setattr(LocalFileSystem, "put_file", now_and_then)
    copy_result(small_run.out, str(small_run.root / "copy"))
    assert files_of(small_run.root / "copy") == files_of(small_run.out)


def test_foreign_files_are_not_touched(small_run):
    place = small_run.root / "photographs"
    place.mkdir()
    (place / "mine.jpg").write_bytes(b"mine")
    status, said = asked(small_run, str(place))
    assert status == 1
    assert any("holds files that no run wrote: name an empty place" in line for line in said)
    assert files_of(place) == {"mine.jpg": b"mine"}


@pytest.mark.parametrize(
    ("place", "said"),
    [("OUT/copies", "lie in each other"), ("nosuch://x", "nosuch"), ("WORK", "lie in each other")],
)
def test_a_place_that_cannot_be_is_refused_at_once(tmp_path, place, said):
    place = place.replace("OUT", str(tmp_path / "out")).replace("WORK", str(tmp_path / "work"))
    with pytest.raises(LvdError, match=said) as caught:
        require_places([place], tmp_path / "out", tmp_path / "work")
    assert "\n" not in str(caught.value)


def test_removed_images_are_gone_from_the_copies(small_run):
    place = small_run.root / "copy"
    out = small_run.out
    assert asked(small_run, "copy")[0] == 0
    assert small_run("verify", out)[0] == 0
    images = pq.read_table(out / "reports" / "images.parquet").to_pylist()
    kept = next(row["key"] for row in images if row["decision"] == "kept")
    (small_run.root / "list.txt").write_text(kept)
    words = ["--list", small_run.root / "list.txt", "--kind", "key", "--no-work"]
    status, said = small_run("remove", out, *words)
    assert status == 0
    assert any(str(place) in line for line in said)
    assert files_of(place) == files_of(out)
