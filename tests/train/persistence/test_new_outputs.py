"""Folders that a training's commands write: what is said where they cannot be made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from shared.errors import LvdError
from train.export.new_folder import new_folder
from train.persistence.run_folder import RunFolder
from train.visualise.output import write_figures


def _figures(out: Path) -> AbstractContextManager[None]:
    write_figures(out, {}, {})
    return ExitStack()


@pytest.mark.parametrize(
    "make",
    [lambda out: RunFolder(out).locked(), new_folder, _figures],
    ids=["run", "export", "look"],
)
def test_an_out_that_cannot_be_made_is_one_line_with_the_remedy(
    tmp_path: Path, make: Callable[[Path], AbstractContextManager[object]]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LvdError, match=r"--out .*out cannot be written .*: name another folder"):
        make(tmp_path / "file" / "out").__enter__()
