"""`latest` names a run where links can be made, and costs nothing where they cannot."""

import errno
import os
from pathlib import Path

import pytest

from curate.execution.output import name_latest


def test_latest_names_the_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        name_latest(Path(name))
        assert Path("runs/curate/latest").resolve() == tmp_path / name


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EROFS])
def test_where_no_link_can_be_made_a_run_ends_well_with_one_line(
    tmp_path, monkeypatch, capsys, number
):
    monkeypatch.chdir(tmp_path)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "symlink", refuse)
    name_latest(Path("out"))
    said = capsys.readouterr().err
    assert said == f"warning: runs/curate/latest does not name this run: {os.strerror(number)}\n"


def test_a_folder_that_cannot_be_made_costs_only_the_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("a file where the folder should be")
    name_latest(Path("out"))
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_in_the_place_of_the_link_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("runs/curate/latest").mkdir(parents=True)
    name_latest(Path("out"))
    assert Path("runs/curate/latest").is_dir()
    assert [path.name for path in Path("runs/curate").iterdir()] == ["latest"]
    assert "does not name this run" in capsys.readouterr().err
