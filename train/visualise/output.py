"""The folder of figures: replaced whole, and never in the place of anything else."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import LvdError
from shared.storage.files import read_json, reraise_disk_full, sync, sync_tree, write_json

FACTS = "visualise.json"
"""What the figures show, and the names of all the other files."""
PICTURE = "picture.png"
"""`lvd-curate demo` makes it of the figures and puts it beside them: it goes when they do."""


def check_replaceable(out: Path) -> None:
    """Raise LvdError where `out` holds anything but the figures of an earlier call."""
    remedy = "name another --out, or remove it"
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise LvdError(f"--out {out} is not a folder: {remedy}")
    if not out.exists():
        return
    there = {path.name for path in out.iterdir()}
    try:
        ours = {FACTS, PICTURE, *read_json(out / FACTS)["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    if foreign := there - ours:
        raise LvdError(f"--out {out} holds {min(foreign)}, which is no figure of ours: {remedy}")


def write_figures(out: Path, files: Mapping[str, bytes], facts: Mapping[str, Any]) -> None:
    """Write `files` and, as visualise.json, `facts` to the folder `out`, in place of earlier ones.

    They are written beside and renamed, so that a reader sees the old figures or the new ones.
    Raises LvdError where `out` holds anything else, and where it cannot be written.
    """
    path = out.expanduser().absolute()
    beside, before = (path.with_name(f".{path.name}.{what}") for what in ("new", "before"))
    try:
        with reraise_disk_full(path.parent):
            if before.exists() and not path.exists():  # one was killed between the two renames
                before.rename(path)
            check_replaceable(path)
            for left in (beside, before):
                shutil.rmtree(left, ignore_errors=True)
            beside.mkdir(parents=True)
            for name, data in files.items():
                (beside / name).write_bytes(data)
            write_json(beside / FACTS, {**facts, "files": sorted(files)})
            sync_tree(beside)
            if path.exists():
                path.rename(before)
            beside.rename(path)
            sync(path.parent)
            shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise LvdError(
            f"--out {out} cannot be written ({error.strerror or error}): name another folder"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
