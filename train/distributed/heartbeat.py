"""Lets one process work as long as it takes while the others wait, as long as it gives signs of life."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from shared.errors import LvdError

Made = TypeVar("Made")

BEAT = 5.0
"""Seconds from one sign of life to the next."""

PATIENCE = 60.0
"""Seconds without one after which the others give up."""

_LONGEST_PAUSE = 1.0


def first_does(
    name: str, work: Callable[[], Made], *, beat: float = BEAT, patience: float = PATIENCE
) -> Made | None:
    """Return what `work` returns in the first process, and None in the others once it is done.

    Every process must call it, with a `name` that the group has not seen yet. A collective would
    give up after its own time limit; here the others look for a sign of life in the group's store,
    every second at least, and wait without limit while there is one. Raises LvdError in the others
    where the first process failed, or gave no sign for `patience` seconds.
    """
    if not dist.is_initialized():
        return work()
    store = dist.distributed_c10d._get_default_store()
    key = f"lvd/{name}"
    if dist.get_rank() == 0:
        return _work(work, store, key, beat)
    _wait(store, key, patience)
    return None


def _work(work: Callable[[], Made], store: dist.Store, key: str, beat: float) -> Made:
    ended = threading.Event()

    def give_signs() -> None:
        for number in itertools.count():
            store.set(key, str(number))
            if ended.wait(beat):
                return

    signs = threading.Thread(target=give_signs, daemon=True)
    signs.start()
    outcome = "failed"
    try:
        made = work()
        outcome = "done"
        return made
    finally:
        ended.set()
        signs.join()
        store.set(key, outcome)


def _wait(store: dist.Store, key: str, patience: float) -> None:
    last, heard, pause = b"", time.monotonic(), 0.01
    while True:
        said = store.get(key) if store.check([key]) else b""
        if said == b"done":
            return
        if said == b"failed":
            raise LvdError("the first process has failed, and says why")
        if said != last:
            last, heard = said, time.monotonic()
        if time.monotonic() - heard > patience:
            raise LvdError(
                f"the first process has given no sign of life for {patience:.0f} s: see what it "
                "says, and run the same command again"
            )
        time.sleep(pause)
        pause = min(_LONGEST_PAUSE, 1.5 * pause)
