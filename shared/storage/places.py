"""Whether a folder that the user names can be written, before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

from shared.errors import LvdError


def parent_of(folder: Path) -> Path:
    """Return the nearest of a folder and its parents that exists."""
    return next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )


def check_writable(folder: Path, option: str) -> None:
    """Raise LvdError, with the option that names the folder, where nothing can be written there."""
    there = parent_of(folder)
    if not there.is_dir():
        raise LvdError(f"{option} {folder}: cannot write below {there}, a file: name another place")
    if not os.access(there, os.W_OK):
        raise LvdError(f"{option} {folder}: cannot write below {there}: name another folder")
