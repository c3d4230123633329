"""Addresses, runs and commits the units of stages, and says how far they are."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curate.execution.executor import Call, Executor, Outcome
from curate.execution.monitor import Monitor
from curate.stage import Failure, Stage, Unit, Workers
from shared.errors import LvdError
from shared.progress import StageBar, stage_bar
from shared.storage.commits import UnderWay, committed, under_way
from shared.storage.failures import as_line, kind_of
from shared.storage.stores import publish, side_by_side


@dataclass
class StageTime:
    """What a stage took, for timings.json."""

    name: str
    seconds: float = 0.0
    images: int = 0
    worked: int = 0
    """Of the images, how many were not done before."""
    cached: bool = True
    steps: dict[str, float] = field(default_factory=dict)
    """Seconds of it by what was being done, where units say so."""


@dataclass
class _Tally:
    """Counts on a bar what units have done, those at work too; may be asked from any thread.

    How many images units of unknown sizes hold is guessed, by their weights, from those that say.
    """

    bar: StageBar
    scratch: Path
    before: int
    """What the bar had counted before these units."""
    whole: int
    """The weight of all units; 0 where their images are known."""
    _weight: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self) -> None:
        """Count what units at work say of themselves."""
        with self._lock:
            self._show(under_way(self.scratch))

    def add(self, images: int, weight: int) -> None:
        """Count a unit that has ended."""
        with self._lock:
            self._weight += weight
            self.bar.advance(images)
            if self.whole:  # what a killed process has left behind says nothing at the end
                ended = self._weight >= self.whole
                self._show(UnderWay() if ended else under_way(self.scratch))

    def _show(self, at_work: UnderWay) -> None:
        self.bar.count_under_way(at_work.done)
        if self.whole and (weight := self._weight + at_work.weight):
            images = self.bar.done - self.before + at_work.of
            self.bar.total = self.before + round(images * self.whole / weight)
            self.bar.is_guess = weight < self.whole


@dataclass
class StageRunner:
    """The `Runner` of one run: units go to `executor`, their files below `work`."""

    work: Path
    scratch: Path
    executor: Executor
    monitor: Monitor
    times: list[StageTime] = field(default_factory=list)
    used: dict[str, None] = field(default_factory=dict)
    """The folders of stages and units that this run's result is made of, below `work`."""
    _bar: StageBar | None = None
    _began: float = 0.0
    _step_began: float = 0.0
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @contextlib.contextmanager
    def at_work(self, name: str) -> Iterator[None]:
        """Show what is run meanwhile under one bar, and note it as one entry of `times`."""
        self.times.append(StageTime(name))
        self._began = time.monotonic()
        with contextlib.ExitStack() as self._open:
            self._open.callback(self.executor.dismiss)
            self._bar = None
            self.monitor.begin(name)
            try:
                yield
            except Exception as error:  # of what is done between units
                raise self._as_line(error) from error
            if self._bar is not None:
                self._bar.note("")  # what was being done is no news on the final line
        self._bar = None
        self.times[-1].seconds = time.monotonic() - self._began

    def note_start(self, seconds: float) -> None:
        """Count what the executor's start took as a stage of its own."""
        self._began += seconds
        self._step_began += seconds
        self.times.insert(-1, StageTime("start Ray", seconds, cached=False))

    def folder(self, stage: Stage) -> Path:
        """Return where the units of a stage lie: `work/<name>/<address>`."""
        return self.work / stage.name / stage.address

    def use(self, place: Path) -> None:
        """Note that the result of this run is made of what lies in `place`."""
        self.used[str(place.relative_to(self.work))] = None

    def run(
        self,
        place: Stage | Path,
        function: Callable[..., dict[str, Any] | None],
        units: Sequence[Unit],
        *,
        workers: Workers | None = None,
        scratch: Path | None = None,
        note: str = "",
        flat: bool = False,
        gpus: int = 0,
    ) -> list[dict[str, Any]]:
        """Run what is not committed of `units` below `place`; return all results in their order.

        `scratch` must lie on the file system of `place`, where that is not below `work`. With `flat`, a
        unit's files lie in the folder itself, behind the mark `<name>_stats.json`.
        """
        folder = self.folder(place) if isinstance(place, Stage) else place
        if scratch is None or folder.is_relative_to(self.work):
            scratch = self.scratch
        if isinstance(place, Stage):
            self.use(folder)
        known = side_by_side(lambda unit: committed(folder / unit.name, flat), units, folder)
        results = {
            unit.name: result
            for unit, result in zip(units, known, strict=True)
            if result is not None
        }
        missing = [unit for unit in units if unit.name not in results]
        calls = [Call(unit, function, scratch, folder, flat) for unit in missing]
        total = sum(unit.images for unit in units)
        done = total - sum(unit.images for unit in missing)
        for unit, outcome in self._run(calls, workers, note, total, done, gpus):
            if isinstance(outcome, Exception):
                raise self._as_line(outcome, unit.name) from outcome
            results[unit.name] = outcome
        return [results[unit.name] for unit in units]

    def map(
        self,
        function: Callable[..., dict[str, Any]],
        units: Sequence[Unit],
        *,
        workers: Workers | None = None,
        done: int = 0,
    ) -> list[dict[str, Any] | Failure]:
        """Run units that commit their results themselves; `done` images were done before.

        A unit that fails for its own reasons on every try gives a `Failure`, and the rest goes on.
        Raises LvdError for a failure of the storage or of the settings.
        """
        calls = [Call(unit, function, self.scratch) for unit in units]
        results: dict[str, dict[str, Any] | Failure] = {}
        self.times[-1].images += done
        for unit, outcome in self._run(calls, workers, "", 0, done, 0):
            if isinstance(outcome, Exception):
                line = self._as_line(outcome, unit.name)
                if kind_of(outcome) != "unit":
                    raise line from outcome
                results[unit.name] = Failure(str(line))
            else:
                results[unit.name] = outcome
        return [results[unit.name] for unit in units]

    def _run(
        self,
        calls: list[Call],
        workers: Workers | None,
        note: str,
        total: int,
        done: int,
        gpus: int,
    ) -> Iterator[tuple[Unit, dict[str, Any] | Exception]]:
        entry = self.times[-1]
        entry.images += total
        if not calls:
            return
        entry.cached = False
        self._step_began = time.monotonic()
        bar = self._show(total, done, note)
        tally = _Tally(bar, calls[0].scratch, bar.done, sum(call.unit.weight for call in calls))

        def waiting(missing: str) -> None:
            bar.note(f"waiting: {missing}" if missing else note)

        self.monitor.look = tally.look
        try:
            for call, outcome in self._outcomes(calls, workers, gpus, waiting):
                unit, images = call.unit, 0
                if isinstance(outcome, Exception):
                    self.monitor.fail()
                else:
                    images = unit.images or (outcome.get("images", 0) if unit.weight else 0)
                    entry.worked += images
                    if unit.weight:
                        entry.images += images
                tally.add(images, unit.weight)
                yield unit, outcome
        finally:
            self.monitor.look = None
            if note:
                took = time.monotonic() - self._step_began
                entry.steps[note] = entry.steps.get(note, 0.0) + took

    def _outcomes(
        self,
        calls: list[Call],
        workers: Workers | None,
        gpus: int,
        waiting: Callable[[str], None],
    ) -> Iterator[Outcome]:
        """Yield what the executor does; raises LvdError where that cannot start, or set up."""
        try:
            yield from self.executor.run(calls, workers, gpus=gpus, waiting=waiting)
        except Exception as error:
            raise self._as_line(error, "start") from error

    def _show(self, total: int, done: int, note: str) -> StageBar:
        """Return the stage's bar, which opens when the first unit is missing."""
        if self._bar is None:
            self._bar = self._open.enter_context(stage_bar(self.times[-1].name, None))
            self.monitor.follow(self._bar)
        if total:
            self._bar.total = (self._bar.total or 0) + total
        self._bar.skip(done)
        if note:
            self._bar.note(note)
        return self._bar

    def _as_line(self, error: Exception, unit: str = "") -> LvdError:
        """Return the one line that a user needs of a failed unit; the trace goes to a file."""
        if isinstance(error, LvdError):
            return error
        stage = self.times[-1].name
        log = self.work / "failures" / f"{'-'.join(filter(None, (stage, unit)))}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(traceback.format_exception(error)))
        if kind_of(error) != "unit":
            return as_line(error, ", ".join(filter(None, (stage, unit))))
        said = (str(error).strip().splitlines() or [""])[0]
        on = f" on {unit}" if unit else ""
        return LvdError(
            f"{stage} failed{on}: {type(error).__name__}: {said} (trace: {publish(log)})"
        )
