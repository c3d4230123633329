"""The folders of a machine that stand for those of stores: made, shared by its processes, kept small.

A copy lies below the system's folder for temporary files (TMPDIR), and holds `MARK`. The process that
runs a command makes one, which is gone at its end; processes on other machines make one of the same
name there. What is left of those that were killed goes when the next copy is made.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from shared.errors import LvdError
from shared.storage.files import fingerprint, read_json, write_json
from shared.storage.locks import holder, scratch_folder

MARK = ".store.json"
"""Says of a copy where its store is (`url`), and how many bytes its units may take (`room`)."""
SCRATCH, MANIFESTS = "scratch", "manifests"
"""Folders of a copy: of what is built or fetched, and of what is known of units."""
ROOM = 100 << 30
RECENT = 60.0
"""Seconds that a unit stays after it was last opened, however little room there is."""


@contextmanager
def new_copy() -> Iterator[Path]:
    """Give a new folder below the system's folder for temporary files (TMPDIR), gone at the end.

    What killed processes have left there goes first.
    """
    with scratch_folder(_home()) as copy:
        yield copy


def mark(copy: Path, url: str, room: int) -> None:
    """Let a folder stand for the folder `url` of a store, with so many bytes for units."""
    write_json(copy / MARK, {"url": url, "room": room})


@lru_cache(maxsize=16)
def copy_here(url: str, room: int, name: str) -> Path:
    """Return this machine's copy called `name` of the folder `url`; made where there is none.

    It belongs to all processes that ask for it, until the last of them ends. Where the process that
    made it for its command runs here, it is that one's.
    """
    copy = _home() / name
    lock = copy.with_name(f"{name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + RECENT
    while time.monotonic() < end:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)  # open until the process ends
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            is_ours = lock.exists() and os.fstat(descriptor).st_ino == lock.stat().st_ino
        except BlockingIOError:
            is_ours = False
        except OSError:  # a file system without locks
            is_ours = True
        if is_ours:
            copy.mkdir(exist_ok=True)
            if not (copy / MARK).exists():
                mark(copy, url, room)
            return copy
        os.close(descriptor)
        if holder(lock) is not None and (copy / MARK).exists():
            return copy
        time.sleep(0.05)  # it is being swept
    raise LvdError(f"{copy} cannot be used: remove it and {lock}")


def remove_copy_here(name: str) -> None:
    """Remove this machine's copy of that name, unless its command runs here and does it."""
    if holder(_home() / f"{name}.lock") is None:
        shutil.rmtree(_home() / name, ignore_errors=True)


def touch(unit: str) -> None:
    """Note that a unit of a copy is opened now."""
    with suppress(OSError):
        os.utime(unit)


def make_room(copy: Path, added: int) -> None:
    """Remove units that were not opened for long where a copy that grew by `added` bytes is too large.

    Looks at all units of the copy when this process has added a sixteenth of its room.
    """
    room = read_json(copy / MARK)["room"]
    grown = _grown(str(copy))
    grown["bytes"] += added
    if grown["bytes"] * 16 < room:
        return
    grown["bytes"] = 0
    units = sorted(_units(copy))
    taken = sum(size for _, _, size in units)
    for opened, path, size in units:
        if taken <= room * 3 // 4 or time.time() - opened < RECENT:
            break
        aside = copy / SCRATCH / f"gone-{fingerprint(path)}-{os.getpid()}"
        with suppress(OSError):  # another process was faster
            os.rename(path, aside)  # noqa: PTH104
            taken -= size
        shutil.rmtree(aside, ignore_errors=True)


@lru_cache(maxsize=16)
def _grown(copy: str) -> Counter[str]:
    return Counter()


def _units(copy: Path) -> Iterator[tuple[float, str, int]]:
    """Yield when what is here of each unit of a copy was last opened, its path and its bytes."""
    for path in copy.glob("*/*/*"):
        if path.parts[len(copy.parts)] not in (SCRATCH, MANIFESTS) and path.is_dir():
            with suppress(OSError):
                size = sum(entry.stat().st_size for entry in os.scandir(path))
                yield path.stat().st_mtime, str(path), size


def _home() -> Path:
    return Path(tempfile.gettempdir()) / "lvd-stores"
