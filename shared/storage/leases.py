"""The lock of a place on an object store: an object that says who holds it, and is renewed.

It is made, taken over and renewed by conditional writes, so that of two processes one succeeds. No
clock of another machine is trusted: a lease of another host has lapsed when it was watched for
`LAPSE` seconds without being renewed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from shared.errors import LvdError
from shared.progress import say
from shared.storage.failures import kind_of, retry
from shared.storage.locks import Holder, start_of

RENEWED = 10.0
"""Seconds between two renewals."""
LAPSE = 45.0
WATCHED = 1.0
"""Seconds between two looks at another's lease."""


@dataclass
class Lease:
    """A lease that this process holds, or has lost."""

    system: Any
    path: str
    content: dict[str, Any]
    tag: str = ""
    lost: bool = False
    _end: threading.Event = field(default_factory=threading.Event)

    def require(self, place: str) -> None:
        """Raise LvdError where another process has taken it over."""
        if self.lost:
            raise LvdError(
                f"another run has taken over {place}, as this one did not answer: run the same "
                "command again later"
            )

    def renew_until_released(self) -> None:
        """Renew the lease until `release` is called, or it is lost."""
        while not self._end.wait(RENEWED):
            self.content["renewed"] += 1
            try:
                self.tag = _write(self.system, self.path, self.content, self.tag)
            except Exception as error:  # what may pass is tried at the next renewal
                if kind_of(error) != "transient":
                    self.lost = True
                    return

    def release(self) -> None:
        """Stop renewing."""
        self._end.set()


@contextlib.contextmanager
def leased(url: str, busy: str) -> Iterator[Lease]:
    """Hold the lease `url`; raises LvdError(`busy`) where a live process does.

    A process of this host that is dead loses it at once.
    """
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    me = Holder(socket.gethostname(), os.getpid(), start_of(os.getpid()))
    content = {**asdict(me), "token": os.urandom(8).hex(), "renewed": 0}
    lease = Lease(system, path, content)
    lease.tag = _take(system, path, content, busy)
    thread = threading.Thread(target=lease.renew_until_released, daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease.release()
        thread.join()
        if not lease.lost:
            with contextlib.suppress(Exception):  # it lapses
                retry(system.rm_file, path)


def _take(system: Any, path: str, content: dict[str, Any], busy: str) -> str:
    """Write the lease and return its tag; LvdError where another process holds it."""
    data = json.dumps(content).encode()
    try:
        retry(system.pipe_file, path, data, mode="create")
        return _look(system, path)[1]
    except FileExistsError:
        there, tag = _look(system, path)
    if there.get("token") == content["token"]:  # the answer to the first try was lost
        return tag
    if _is_held(system, path, there):
        raise LvdError(busy)
    try:
        return _write(system, path, content, tag)
    except OSError as error:
        if kind_of(error) != "unit":
            raise
        raise LvdError(busy) from error  # another process took it over meanwhile


def _is_held(system: Any, path: str, there: dict[str, Any]) -> bool:
    """Tell whether who wrote a lease is at work; of one on another host that takes some time."""
    if there.get("host") == socket.gethostname():
        return start_of(there["pid"]) == there["began"]
    say(f"{path} is held on {there.get('host')}: looking whether it is renewed")
    end = time.monotonic() + LAPSE
    while time.monotonic() < end:
        time.sleep(WATCHED)
        with contextlib.suppress(FileNotFoundError):
            if _look(system, path)[0] != there:
                return True
    return False


def _write(system: Any, path: str, content: dict[str, Any], tag: str) -> str:
    """Replace the lease that has this tag, and return the new one; OSError where it has another."""
    data = json.dumps(content).encode()
    system.pipe_file(path, data, **({"IfMatch": tag} if tag else {}))
    return _look(system, path)[1]


def _look(system: Any, path: str) -> tuple[dict[str, Any], str]:
    """Return what a lease says, and its tag, which its next writer names."""
    system.invalidate_cache()
    tag = retry(system.info, path).get("ETag", "")
    content: dict[str, Any] = json.loads(retry(system.cat_file, path))
    return content, tag
