"""A result whose OUT is a URL: built in a folder of this machine, and copied there whole at the end.

At its place `run.json` goes first and comes last, so that a result is never there in part. A run that
is cut off while it copies goes on where it was; one that is cut off before builds the result again,
from what is in WORK.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from curate.execution.copies import NOTE, copy_result
from curate.execution.output import FILES, RUN, TIMINGS
from shared.errors import LvdError
from shared.storage.leases import Lease, leased
from shared.storage.locks import busy
from shared.storage.store_copies import new_copy
from shared.storage.stores import Store, reword_store

READ = (FILES, TIMINGS, "reports/funnel.json")
"""What a run reads of a result that is there, besides `run.json`."""


@dataclass(frozen=True)
class Published:
    """The OUT `url`, and the folder `local` where the result is built."""

    url: str
    local: Path
    lease: Lease

    def publish(self) -> None:
        """Copy the result that was built to its place."""
        self.lease.require(self.url)
        copy_result(self.local, self.url, option="--out")


@contextmanager
def open_published(url: str) -> Iterator[Published]:
    """Give the OUT `url` to this process alone; what a run reads of it is fetched.

    Raises LvdError where another run is at work on it, or where it holds what no run wrote.
    """
    url = url.rstrip("/")
    parent, _, name = url.rpartition("/")
    if not name or parent.endswith("/"):
        raise LvdError(f"--out {url}: name a folder in the bucket, such as {url}/mine")
    with ExitStack() as stack:
        folder = stack.enter_context(new_copy())
        store, local = Store(parent, folder), folder / name
        with reword_store("--out", url):
            lease = stack.enter_context(leased(f"{parent}/.{name}.lock", busy(url)))
            if store.fetch(local / RUN):
                for path in READ:
                    store.fetch(local / path)
            elif not store.has_file(local / NOTE) and store.has_files(local):
                raise LvdError(f"--out {url} holds files that no run wrote: name an empty place")
        yield Published(url, local, lease)
