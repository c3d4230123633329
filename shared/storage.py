"""Fingerprints and atomic writes: nothing that is half-written is ever taken for whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from shared.errors import LvdError

UNIT_MANIFEST = "unit.json"
PROGRESS = "progress"
"""A unit at work may keep its count in a file of this name; it is not committed."""


def dumps(value: Any) -> str:
    """Return `value` as JSON with sorted keys, so that equal values are equal bytes."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def fingerprint(value: Any) -> str:
    """Return 16 hex digits that address a JSON-able `value`."""
    return hashlib.blake2b(dumps(value).encode(), digest_size=8).hexdigest()


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text())


def write_json(path: Path, value: Any, scratch: Path | None = None) -> None:
    """Write `value` to `path` whole or not at all; `scratch` is that of `written_whole`."""
    with written_whole(path, scratch) as beside:
        beside.write_text(dumps(value))


@contextmanager
def written_whole(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield where to write what becomes `path` at the end: whole, or not at all.

    That is in `scratch`, a folder on the same file system that is swept after a crash, or beside.
    """
    beside = (scratch or path.parent) / f".{path.name}.{os.getpid()}"
    try:
        yield beside
        sync(beside)
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def set_aside(path: Path) -> Path:
    """Rename `path` to `NAME.earlier-N`, N the first that is free, and return what it is now."""
    names = (path.with_name(f"{path.name}.earlier-{number}") for number in count(1))
    return path.rename(next(name for name in names if not name.exists()))


def sync(path: Path) -> None:
    """Flush a file or a folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and `folder`."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))


def is_disk_full(error: OSError) -> bool:
    """Return whether an error is that of a full disk, or of a quota that is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def reraise_disk_full(place: Path) -> Iterator[None]:
    """Turn a full disk into one line that says where, and what to do."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise LvdError(
            f"no space left below {place}: free some, or name another folder with --work or --out, "
            "and run the same command again (what is done is kept)"
        ) from error


@contextmanager
def reraise_write_errors() -> Iterator[None]:
    """Turn safetensors' failed writes, which are no OSErrors, into those they were."""
    try:
        yield
    except SafetensorError as error:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO):
            if f"(os error {number})" in str(error):
                raise OSError(number, str(error)) from error
        raise


def mark(out: Path, flat: bool) -> Path:
    """Return the file whose presence says that the unit `out` is whole."""
    return out.with_name(f"{out.name}_stats.json") if flat else out / UNIT_MANIFEST


def committed(out: Path, flat: bool, known: Mapping[str, dict]) -> dict[str, Any] | None:
    """Return the result of a committed unit (from `known`, if it is there too), or None."""
    if not mark(out, flat).exists():
        return None
    return known.get(out.name) or read_json(mark(out, flat))


def commit_unit(
    function: Callable[..., dict | None],
    args: tuple,
    out: Path,
    scratch: Path,
    flat: bool = False,
) -> dict[str, Any]:
    """Run `function(*args, out=folder)` in a folder below `scratch`, then rename that to `out`.

    The function's result (a JSON-able dict) is kept in the folder's `unit.json`. With `flat` the
    function leaves files called `<out.name>...` and, as its mark, `<out.name>_stats.json` with the
    result; each is renamed to stand beside `out`, the mark last. A unit that is already there,
    committed by another try, is not computed again. `scratch` and `out` must lie on one file
    system.
    """
    if (result := committed(out, flat, {})) is not None:
        return result
    beside = scratch / f"{fingerprint(str(out))}-{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    with reraise_disk_full(out.parent):
        try:
            beside.mkdir(parents=True)
            result = function(*args, out=beside) or {}
            (beside / PROGRESS).unlink(missing_ok=True)
            if not flat:
                (beside / UNIT_MANIFEST).write_text(dumps(result))
            sync_tree(beside)
            out.parent.mkdir(parents=True, exist_ok=True)
            if flat:
                _rename_files(beside, mark(out, flat))
            else:
                _rename_folder(beside, out)
            sync(out.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return committed(out, flat, {}) or result


def under_way(scratch: Path) -> int:
    """Return what the units at work below `scratch` have counted."""
    count = 0
    for path in scratch.glob(f"*/{PROGRESS}"):
        with suppress(OSError, ValueError):
            count += int(path.read_text())
    return count


def _rename_folder(beside: Path, out: Path) -> None:
    try:
        beside.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not (out / UNIT_MANIFEST).exists():
            raise


def _rename_files(beside: Path, last: Path) -> None:
    names = sorted(path.name for path in beside.iterdir() if path.name != last.name)
    for name in names:
        (beside / name).rename(last.with_name(name))
    sync(last.parent)
    (beside / last.name).rename(last)
