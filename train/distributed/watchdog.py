"""Writes down where a process stands once its steps no longer come: hung collectives die unexplained."""

from __future__ import annotations

import faulthandler
import json
import os
import threading
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from shared.progress import warn

SHARE = 0.5
"""Of the time that a collective may take, after which the stacks are written: the process may be
ended with the collective."""


def record_collectives() -> None:
    """Let torch's flight recorder keep the last collectives of groups that are made from now on."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")


class Watchdog:
    """While entered, a thread that looks whether `beat` is still called.

    Once `limit` seconds have passed without it, `folder/hang-RANK.txt` gets the stacks of all
    threads and `folder/hang-RANK.json` the last collectives that torch's flight recorders know, by
    backend. That is done once until the next beat, and ends nothing.
    """

    def __init__(self, limit: float, folder: Path, rank: int) -> None:
        self._limit, self._folder, self._rank = limit, folder, rank
        self._last = monotonic()
        self._told = False
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watchdog:
        self.beat()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._thread.join()

    def beat(self) -> None:
        """Say that the process goes on."""
        self._last, self._told = monotonic(), False

    def _watch(self) -> None:
        while not self._left.wait(min(1.0, self._limit / 4)):
            quiet = monotonic() - self._last
            if quiet >= self._limit and not self._told:
                self._told = True
                self._write(quiet)

    def _write(self, quiet: float) -> None:
        path = self._folder / f"hang-{self._rank}.txt"
        try:
            with path.open("w", encoding="utf-8") as file:
                print(f"no step has ended for {quiet:.0f} s; all threads:", file=file, flush=True)
                faulthandler.dump_traceback(file)
        except OSError as error:
            warn(f"process {self._rank} hangs, and {path} cannot be written: {error.strerror}")
            return
        recorded = path.with_suffix(".json")
        try:
            if dist.is_initialized():
                recorded.write_text(json.dumps(recorded_collectives()), encoding="utf-8")
        except (OSError, RuntimeError, ValueError) as error:  # the group may be gone by now
            warn(f"process {self._rank}: {recorded} cannot be written: {error}")
        warn(f"process {self._rank}: no step has ended for {quiet:.0f} s: {path} says where it is")


def recorded_collectives() -> dict[str, Any]:
    """Return what the flight recorders hold, by backend: NCCL has one of its own."""
    traces = {"gloo": c10d._dump_fr_trace_json}
    if "nccl" in dist.get_backend_config():
        traces["nccl"] = getattr(c10d, "_dump_nccl_trace_json")  # noqa: B009 - torch types it not
    return {backend: json.loads(trace()) for backend, trace in traces.items()}
