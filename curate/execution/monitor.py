"""Writes how far a run is, for `lvd-curate status` in another terminal; takes no lock."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from shared.progress import StageBar
from shared.storage.files import dumps
from shared.storage.locks import start_of

INTERVAL = 1.0
"""Seconds between two writes."""
SILENT = 15.0
"""Seconds without a write after which a run counts as cut off."""


class Monitor:
    """Writes a run's stage, counts and failures to `paths` every second; a context manager."""

    def __init__(self, paths: Sequence[Path], out: Path | None) -> None:
        self._paths = paths
        self._about = {"out": out and str(out), "pid": os.getpid(), "host": socket.gethostname()}
        self._stage, self._failures = "", 0
        self._bar: StageBar | None = None
        self.look: Callable[[], None] | None = None
        """Called before each report, in any thread: counts what units at work have done."""
        self._began = self._stage_began = time.time()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | object) -> None:
        self._end.set()
        self._thread.join()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def begin(self, stage: str) -> None:
        """Note that a stage begins."""
        self._stage, self._bar, self._stage_began = stage, None, time.time()

    def follow(self, bar: StageBar) -> None:
        """Read the counts of this bar from now on."""
        self._bar = bar

    def fail(self) -> None:
        """Count a failed unit."""
        self._failures += 1

    def report(self) -> dict[str, Any]:
        """Return what is written: JSON-able, times in seconds since the epoch."""
        if (look := self.look) is not None:
            look()
        bar = self._bar
        return {
            **self._about,
            "stage": self._stage,
            "began": self._began,
            "stage_began": self._stage_began,
            "updated": time.time(),
            "failures": self._failures,
            **(bar.counts() if bar is not None else {}),
        }

    def _follow(self) -> None:
        while True:
            text = dumps(self.report())
            for path in self._paths:
                with contextlib.suppress(OSError):  # the run itself will say of a full disk
                    path.parent.mkdir(parents=True, exist_ok=True)
                    beside = path.with_name(f"{path.name}.{os.getpid()}")
                    beside.write_text(text)
                    beside.rename(path)
            if self._end.wait(INTERVAL):
                return


def lives(report: dict[str, Any]) -> bool:
    """Tell whether the run that wrote a report is at work still."""
    if time.time() - report["updated"] > SILENT:
        return False
    return report["host"] != socket.gethostname() or start_of(report["pid"]) != ""
