"""The project's one lock between processes, and scratch folders that are swept after a crash."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from shared.errors import LvdError
from shared.progress import say, warn
from shared.storage.remote import is_remote

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)
"""How file systems, most of them of a network, say that they have no locks."""

_UNLOCKED = "{} is on storage without locks: nothing keeps a second run from it"


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    host: str
    pid: int
    began: str
    """When the process started, in the words of its system: tells it from a later one."""


@contextlib.contextmanager
def locked(path: Path | str, busy: str | None, waiting: str = "") -> Iterator[int | None]:
    """Hold the lock file `path`; where another process does: LvdError(`busy`).

    With `busy` None it is waited for, after `waiting` is said. Yields its descriptor (None where
    there are no locks, as behind a URL, which is said): a child process that inherits it goes on
    holding the lock if this process is killed. The file says who holds it (`holder`), and stays
    when nobody does: to remove it could give two processes one lock.
    """
    if is_remote(str(path)):
        warn(_UNLOCKED.format(str(path).rpartition("/")[0]))
        yield None
        return
    descriptors: list[int] = []
    lock = FileLock(path, fallback_to_soft=False, on_acquired=descriptors.append)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if busy is not None:
                raise LvdError(busy) from None
            if waiting:
                say(waiting)
            lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise LvdError(
                f"{path} cannot be written ({error.strerror}): name another folder"
            ) from error
        warn(_UNLOCKED.format(Path(path).parent))
        yield None
        return
    [descriptor] = descriptors
    try:
        me = Holder(socket.gethostname(), os.getpid(), start_of(os.getpid()))
        _write(descriptor, json.dumps(asdict(me)).encode())
        yield descriptor
    finally:
        _write(descriptor, b"")
        lock.release()


def busy(out: Path | str) -> str:
    """Return what a run says whose `--out` another run is at work on."""
    return f"another run is writing --out {out}: wait for it, or name another --out"


def holder(path: Path) -> Holder | None:
    """Return who holds a lock file, by its own word and without touching the lock; None if nobody.

    Of a process on this host it is known whether it lives; of one on another host, killed, the
    word stays until the next run.
    """
    try:
        found = Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    dead = found.host == socket.gethostname() and start_of(found.pid) != found.began
    return None if dead else found


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Give a new folder below `parent`, of this process alone; it is gone at the end.

    First removes what killed processes have left there: folders whose lock nobody holds.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{os.getpid()}-{time.time_ns()}"
    path = folder.with_name(folder.name + ".lock")
    with locked(path, None) as descriptor:
        if descriptor is not None:
            _sweep(parent)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            path.unlink(missing_ok=True)  # held: who waits for it sees that its file is gone


def _sweep(parent: Path) -> None:
    for path in sorted(parent.glob("*.lock")):
        with contextlib.suppress(OSError, Timeout), FileLock(path, timeout=0):
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)


def start_of(pid: int) -> str:
    """Return when a process of this host started, in the words of its system; "" if it is gone."""
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "alive"
    return "" if state[0] == "Z" else state[19]


def _write(descriptor: int, content: bytes) -> None:
    with contextlib.suppress(OSError):  # who holds it is a courtesy; the lock is what counts
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)
