"""Hears the signals that ask a run to stop, so that it can save first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers and torchrun send to end a job, and what Slurm can be told to send before."""


_Handler = Callable[[int, FrameType | None], Any] | int | None
"""What `signal.signal` takes and returns."""


class StopRequest:
    """While entered, notes SIGTERM and SIGUSR1 instead of dying of them.

    However often they come: Slurm and torchrun both send one at the end of a job. One process may
    be asked before the others are: `train.distributed.ranks.any_rank(stop.asked)` is what all may act on.
    Python hears signals in its main thread; elsewhere nothing is installed, nor ever asked.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, _Handler] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
