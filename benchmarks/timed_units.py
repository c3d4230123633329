"""An executor that runs units in this process, and tells of each what it took of a processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from curate.execution.executor import Call, Outcome
from curate.execution.inline import InlineExecutor
from curate.stage import Workers


class TimedUnits(InlineExecutor):
    """Tells `begins` of each unit before it, and `ended` behind it, with its CPU seconds."""

    def __init__(
        self,
        ended: Callable[[Call, float], None],
        begins: Callable[[Call], None] = lambda call: None,
    ) -> None:
        super().__init__()
        self._ended, self._begins = ended, begins

    def run(
        self,
        calls: Sequence[Call],
        workers: Workers | None,
        *,
        gpus: int,
        waiting: Callable[[str], None],
    ) -> Iterator[Outcome]:
        """Yield each call with its result, or with the exception that its last try raised."""
        for call in calls:
            self._begins(call)
            used = time.process_time()
            [outcome] = super().run([call], workers, gpus=gpus, waiting=waiting)
            self._ended(call, time.process_time() - used)
            yield outcome
