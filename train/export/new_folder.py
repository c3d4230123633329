"""Gives an export a folder that is there whole or not at all, and never takes another's place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import LvdError
from shared.storage.files import reraise_disk_full, reraise_write_errors, sync, sync_tree


def check_free(out: Path) -> None:
    """Raise LvdError where there is anything at `out` but an empty folder."""
    path = out.expanduser()
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise LvdError(f"--out {out} is there, and not an empty folder: name another, or remove it")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out` that is renamed to it at the end, or removed on any failure.

    Raises LvdError where there is anything at `out`, where it cannot be written, and in one line
    when the disk is full.
    """
    check_free(out)
    path = out.expanduser().absolute()
    beside = path.with_name(f".{path.name}.lvd-export")
    try:
        with reraise_disk_full(path.parent), reraise_write_errors():
            shutil.rmtree(beside, ignore_errors=True)  # of one that was killed
            beside.mkdir(parents=True)
            yield beside
            sync_tree(beside)
            beside.rename(path)
            sync(path.parent)
    except OSError as error:
        raise LvdError(
            f"--out {out} cannot be written ({error.strerror or error}): name another folder"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
