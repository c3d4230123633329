"""Runs the first seconds of a run's units in this process, and what is left on Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

from curate.execution.executor import Call, Outcome
from curate.execution.inline import InlineExecutor
from curate.execution.on_ray import RayExecutor
from curate.stage import Workers

SECONDS = 3.0
"""Of units in this process before Ray is started: about what its start takes."""


class AutoExecutor:
    """An executor that starts Ray for what takes longer than its start.

    Units of workers with a setup always go to Ray: they decode what a crawl holds, and a picture
    that kills its decoder must not kill the run. So does everything where RAY_ADDRESS names a
    cluster, and everything after Ray's start.
    """

    def __init__(self, on_ray: RayExecutor) -> None:
        self._on_ray = on_ray
        self._inline = InlineExecutor()
        self._left = 0.0 if os.environ.get("RAY_ADDRESS") else SECONDS

    def __enter__(self) -> AutoExecutor:
        return self

    def __exit__(self, *raised: object) -> None:
        self._on_ray.__exit__(*raised)

    def run(
        self,
        calls: Sequence[Call],
        workers: Workers | None,
        *,
        gpus: int,
        waiting: Callable[[str], None],
    ) -> Iterator[Outcome]:
        """Yield each call with its result, or with the exception that its last try raised."""
        done = 0
        if workers is None and not gpus:
            while done < len(calls) and self._left > 0 and not self._on_ray.is_started:
                began = time.monotonic()
                outcome = next(
                    self._inline.run([calls[done]], None, gpus=0, waiting=lambda missing: None)
                )
                self._left -= time.monotonic() - began
                done += 1
                yield outcome
        if done < len(calls):
            yield from self._on_ray.run(calls[done:], workers, gpus=gpus, waiting=waiting)

    def dismiss(self) -> None:
        """Let go of workers."""
        self._on_ray.dismiss()
