"""An executor that notes what each unit takes: CPU, memory, files and bytes."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq

from curate.execution.executor import Call, Outcome
from curate.execution.inline import InlineExecutor
from curate.stage import Workers
from shared.memory import release_memory

SECONDS = 0.005
"""Between two looks at the memory."""
STAGES = {"choose": "select", ".tables": "report"}
"""The stages that folders of other names belong to."""


@dataclass
class Taken:
    """What the units of one kind took."""

    units: int = 0
    cpu_s: float = 0.0
    bytes: int = 0
    puts: int = 0
    gets: int = 0
    memory: int = 0
    """Of the unit that took most."""
    compared: int = 0
    """Pairs of vectors that they compared, as they say themselves."""
    each: dict[str, float] = field(default_factory=dict)
    """CPU seconds by the folder and the name of the unit."""


class MeasuringExecutor(InlineExecutor):
    """Runs units one after another in this process, and keeps what each kind took in `taken`.

    Kinds are pairs of a stage and the name of the function that makes the unit. Files that are
    opened count once for each unit: by Python, and Parquet files by pyarrow.
    """

    def __init__(self, work: Path) -> None:
        super().__init__()
        self.taken: dict[tuple[str, str], Taken] = defaultdict(Taken)
        self._work = str(work)
        self._own = tuple(
            f"{work}/{name}/" for name in ("scratch", "status", "out/.scratch", "export/.scratch")
        )
        """Where units are built and a run says how far it is: no inputs of units."""
        self._opened: set[str] | None = None
        sys.addaudithook(self._note_open)

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
            with self._measured(call) as taken:
                [outcome] = super().run([call], workers, gpus=gpus, waiting=waiting)
            if isinstance(outcome[1], dict):
                taken.compared += outcome[1].get("compared", 0)
            yield outcome

    def _note_open(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self._opened is not None and arguments[1] in ("r", "rb"):
            self._note(arguments[0])

    def _note(self, path: object) -> None:
        name = str(path)
        is_input = name.startswith(self._work) and not name.startswith(self._own)
        if self._opened is not None and is_input:
            self._opened.add(name)

    @contextmanager
    def _measured(self, call: Call) -> Iterator[Taken]:
        taken = self._taken_by(call)
        release_memory()
        before = own_bytes()
        peak, ended = [before], threading.Event()

        def look() -> None:
            while not ended.wait(SECONDS):
                peak[0] = max(peak[0], own_bytes())

        watch = threading.Thread(target=look)
        opened, self._opened = set[str](), set[str]()
        used = time.process_time()
        watch.start()
        try:
            with patch.object(pq, "ParquetFile", self._noting(pq.ParquetFile)):
                yield taken
        finally:
            ended.set()
            watch.join()
            used = time.process_time() - used
            opened, self._opened = self._opened, None
        if call.folder is None:
            return
        own = call.folder / call.unit.name
        files = [file.stat().st_size for file in own.iterdir()]
        taken.units += 1
        taken.cpu_s += used
        taken.each[f"{call.folder.name}/{call.unit.name}"] = used
        taken.bytes += sum(files)
        taken.puts += len(files)
        others = (Path(path) for path in opened if not path.startswith(f"{own}/"))
        taken.gets += sum(path.exists() for path in others)
        taken.memory = max(taken.memory, peak[0] - before)

    def _taken_by(self, call: Call) -> Taken:
        if call.folder is None:
            return Taken()
        folder = call.folder.name if call.folder.name in STAGES else call.folder.parent.name
        if call.folder.parent.name == "catalogue":
            folder = "catalogue"
        return self.taken[STAGES.get(folder, folder), call.function.__name__]

    def _noting(self, reader: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: object, *args: object, **how: object) -> object:
            self._note(path)
            return reader(path, *args, **how)

        return opened


def own_bytes() -> int:
    """Return the memory that this process holds of its own, beside mapped files (`RssAnon`)."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0
