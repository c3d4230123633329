"""Commits the files of a unit whole or not at all; the unit's manifest is its only record."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import LvdError
from shared.storage.files import (
    digest_file,
    dumps,
    fingerprint,
    read_json,
    reraise_disk_full,
    sync,
    sync_tree,
)
from shared.storage.stores import MANIFEST as MANIFEST
from shared.storage.stores import store_of

PROGRESS = "progress"
"""A unit at work may say how far it is in a file of this name; it is not committed."""


@dataclass(frozen=True)
class UnderWay:
    """How far units at work are: images done, of how many, and the weight that those stand for."""

    done: int = 0
    of: int = 0
    weight: int = 0

    def __add__(self, other: UnderWay) -> UnderWay:
        return UnderWay(self.done + other.done, self.of + other.of, self.weight + other.weight)

    def write(self, beside: Path) -> None:
        """Say so of the unit that is built in `beside`."""
        (beside / PROGRESS).write_text(f"{self.done} {self.of} {self.weight}")


def committed(out: Path, flat: bool = False) -> dict[str, Any] | None:
    """Return the result of a committed unit, or None.

    A flat unit's files lie beside `out`, behind the mark `<out.name>_stats.json`; no unit of a store is
    flat.
    """
    if flat and store_of(out) is None:
        mark = _stats(out)
        return read_json(mark) if mark.exists() else None
    manifest = read_manifest(out)
    return None if manifest is None else manifest["result"]


def read_manifest(out: Path) -> dict[str, Any] | None:
    """Return a unit's manifest (`result`, `files`, `runtime`), or None where it is not committed.

    Of a store it alone is fetched. Raises LvdError where it is damaged.
    """
    store = store_of(out)
    try:
        written = (out / MANIFEST).read_bytes() if store is None else store.manifest(out)
        if written is None:
            return None
        manifest: dict[str, Any] = json.loads(written)
        if "seal" not in manifest:  # of an older version
            return None
        if manifest.pop("seal") == fingerprint(manifest):
            return manifest
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError):  # no JSON, or a number
        pass
    if store is not None:
        raise LvdError(
            f"{store.url_of(out / MANIFEST)} is damaged: remove it, and run the same command again"
        )
    raise LvdError(
        f"{out / MANIFEST} is damaged: remove {out} (lvd-curate verify --discard finds all that "
        "is), and run the same command again"
    )


def digest_of(out: Path) -> str:
    """Return what stands for the content of a committed unit: a fingerprint of its files' hashes."""
    manifest = _required_manifest(out)
    return fingerprint({name: entry["sha256"] for name, entry in manifest["files"].items()})


def unit_files(out: Path) -> list[Path]:
    """Return the paths of a committed unit's files, which a store gives when they are opened."""
    return [out / name for name in sorted(_required_manifest(out)["files"])]


@contextmanager
def building(out: Path, scratch: Path) -> Iterator[Path]:
    """Yield an empty folder below `scratch` where the unit `out` is built, removed at the end."""
    beside = scratch / f"{fingerprint(str(out))}-{os.getpid()}-{threading.get_ident()}"
    shutil.rmtree(beside, ignore_errors=True)
    with reraise_disk_full(out.parent):
        beside.mkdir(parents=True)
        try:
            yield beside
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def commit(
    beside: Path, out: Path, result: dict[str, Any], runtime: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Make the folder `beside` the unit `out`, on the same file system, and return its result.

    Its manifest holds `result`, the size and hash of every file, and `runtime`: what is worth
    knowing of how it was computed and decides nothing. A unit that another process has committed
    meanwhile stays, and its result is returned; what else stands there is removed. Where `out` is of
    the copy of a store, the files go there first.
    """
    (beside / PROGRESS).unlink(missing_ok=True)
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest_file(path)}
        for path in sorted(beside.iterdir())
    }
    manifest = {"result": result, "files": files, "runtime": runtime or {}}
    (beside / MANIFEST).write_text(dumps({**manifest, "seal": fingerprint(manifest)}))
    sync_tree(beside)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists() and read_manifest(out) is None:
        discard(out, beside.parent)
    if (store := store_of(out)) is not None:
        store.put_unit(beside, out)
    try:
        beside.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or read_manifest(out) is None:
            raise
    sync(out.parent)
    return committed(out) or result


def run_unit(
    function: Callable[..., dict[str, Any] | None],
    args: tuple[Any, ...],
    out: Path,
    scratch: Path,
    flat: bool = False,
) -> dict[str, Any]:
    """Run `function(*args, out=folder)` and commit the folder as `out`; return the result.

    With `flat` the function leaves files called `<out.name>...` and, as its mark,
    `<out.name>_stats.json` with the result: each is renamed to stand beside `out`, the mark last; on a
    store they are a unit as all others. A unit that is there already is not computed again.
    """
    if (result := committed(out, flat)) is not None:
        return result
    with building(out, scratch) as beside:
        result = function(*args, out=beside) or {}
        if not flat or store_of(out) is not None:
            return commit(beside, out, result)
        sync_tree(beside)
        out.parent.mkdir(parents=True, exist_ok=True)
        mark = _stats(out)
        for path in sorted(beside.iterdir(), key=lambda path: path.name == mark.name):
            if path.name == mark.name:
                sync(out.parent)
            path.rename(out.with_name(path.name))
        sync(out.parent)
        return result


def discard(out: Path, scratch: Path) -> None:
    """Remove a unit: at once for whoever looks, as its folder is renamed before it is emptied."""
    if (store := store_of(out)) is not None:
        store.remove_unit(out)
    aside = scratch / f"discarded-{fingerprint(str(out))}"
    shutil.rmtree(aside, ignore_errors=True)
    scratch.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        out.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def under_way(scratch: Path) -> UnderWay:
    """Return how far the units at work below `scratch` are together, as far as they say."""
    found = UnderWay()
    with suppress(OSError):  # the folder of a unit that has just ended
        for path in scratch.glob(f"*/{PROGRESS}"):
            with suppress(OSError, ValueError, TypeError):  # half written, or gone
                found += UnderWay(*map(int, path.read_text().split()))
    return found


def _required_manifest(out: Path) -> dict[str, Any]:
    manifest = read_manifest(out)
    if manifest is None:
        raise FileNotFoundError(f"no unit is committed in {out}")
    return manifest


def _stats(out: Path) -> Path:
    return out.with_name(f"{out.name}_stats.json")
