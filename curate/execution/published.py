"""A result whose OUT is a URL: built in a folder of this machine, and copied there whole at the end.

At its place `run.json` goes first and comes last, so that a result is never there in part. A run that
is cut off while it copies goes on where it was; one that is cut off before builds the result again,
from what is in WORK. What a run on a grown crawl reads of the earlier result is kept beside it until
the new one is whole, so that a run that was cut off goes on from the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from curate.execution.copies import NOTE, copy_result, remove_copy
from curate.execution.output import FILES, RUN
from curate.increment import files_read
from curate.report.timings import TIMINGS
from shared.errors import LvdError
from shared.storage.files import link_or_copy, read_json, read_optional, write_json
from shared.storage.leases import Lease, leased
from shared.storage.locks import busy
from shared.storage.store_copies import new_copy
from shared.storage.stores import Store, reword_store

READ = (FILES, TIMINGS, "reports/funnel.json")
"""What a run reads of a result that is there, besides `run.json`."""


@dataclass
class Published:
    """The OUT `url`, and the folder `local` where the result is built."""

    url: str
    local: Path
    lease: Lease
    store: Store
    is_whole: bool
    """False where a result was being copied over another: `local` is what is kept of that."""
    goes_on: bool = False
    """Whether the result to be published was made from what is there."""

    def fetch_earlier(self) -> None:
        """Fetch of the result there what a run reads that goes on from it, and keep it beside it."""
        with reword_store("--out", self.url):
            known = read_optional(self.local / FILES)
            names = files_read(known)
            kept = _earlier(self.local)
            for name in names:
                place = (self.local if self.is_whole else kept) / name
                self.store.fetch_whole(place, self.local / name, known[name]["sha256"])
        self.goes_on = True
        if not self.is_whole:
            return
        for name in names:
            link_or_copy(self.local / name, kept / name)
        write_json(kept / RUN, read_json(self.local / RUN))
        write_json(kept / FILES, {name: known[name] for name in (RUN, *names)})
        copy_result(kept, self.store.url_of(kept), option="--out")

    def publish(self) -> None:
        """Copy the result that was built to its place.

        What is kept of an earlier one stays until then if the result goes on from that.
        """
        self.lease.require(self.url)
        place = self.store.url_of(_earlier(self.local))
        if not self.goes_on:
            remove_copy(place, "--out")
        copy_result(self.local, self.url, option="--out")
        remove_copy(place, "--out")


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
            is_whole = store.fetch(local / RUN)
            if not is_whole and store.has_file(local / NOTE):
                if store.fetch(_earlier(local) / RUN):
                    for path in READ:
                        store.fetch(_earlier(local) / path)
                    _earlier(local).rename(local)
            elif is_whole:
                for path in READ:
                    store.fetch(local / path)
            elif store.has_files(local):
                raise LvdError(f"--out {url} holds files that no run wrote: name an empty place")
        yield Published(url, local, lease, store, is_whole)


@contextmanager
def fetched(url: str) -> Iterator[Path]:
    """Give a folder with what a run reads of the finished result `url` that it goes on from.

    Raises LvdError, in one line, where there is none.
    """
    parent, _, name = url.rstrip("/").rpartition("/")
    with new_copy() as folder:
        store, local = Store(parent, folder), folder / name
        with reword_store("--since", url):
            if not all(store.fetch(local / file) for file in (RUN, FILES)):
                raise LvdError(f"--since {url} is no finished run: name the --out of one")
            known = read_json(local / FILES)
            for file in files_read(known):
                store.fetch_whole(local / file, local / file, known[file]["sha256"])
        yield local


def _earlier(local: Path) -> Path:
    """Return where lies what is kept of an earlier result, here and at the store."""
    return local.with_name(f".{local.name}.earlier")
