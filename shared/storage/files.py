"""Fingerprints and atomic writes: nothing that is half-written is ever taken for whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from shared.errors import LvdError


def dumps(value: Any) -> str:
    """Return `value` as JSON with sorted keys, so that equal values are equal bytes."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def fingerprint(value: Any, size: int = 8) -> str:
    """Return `2 * size` hex digits that address a JSON-able `value`."""
    return hashlib.blake2b(dumps(value).encode(), digest_size=size).hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or where the file system has no links a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def digest_file(path: Path) -> str:
    """Return the sha256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text())


def read_optional(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file that may not be there, or not whole: {} in its place."""
    try:
        content: dict[str, Any] = read_json(path)
        return content
    except (OSError, ValueError):
        return {}


def write_json(path: Path, value: Any, scratch: Path | None = None) -> None:
    """Write `value` to `path` whole or not at all; `scratch` is that of `written_whole`."""
    with written_whole(path, scratch) as beside:
        beside.write_text(dumps(value))


@contextmanager
def written_whole(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield where to write what becomes `path` at the end: whole, or not at all.

    That is in `scratch`, a folder on the same file system that is swept after a crash, or beside.
    """
    own = f"{os.getpid()}-{threading.get_ident()}"  # threads may write one path at a time
    beside = (scratch or path.parent) / f".{path.name}.{own}"
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
