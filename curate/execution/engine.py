"""Runs units of work on Ray: back-pressure, retries, progress, placement and atomic commits.

The only module that imports ray. A unit is a plain function of its arguments that writes files to
the folder it is given; the engine runs it somewhere, commits the folder by a rename, and never
runs again what is committed. Ray is started only when there is something left to run.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from shared.errors import LvdError
from shared.progress import StageBar, stage_bar
from shared.storage import (
    commit_unit,
    committed,
    disk_full_is_said,
    read_json,
    under_way,
    write_json,
)

STAGE_MANIFEST = "manifest.json"
TRIES = 3
"""Of a unit: a task whose worker dies, or whose storage fails for a moment, runs again."""
DEATHS = 16
"""Of an actor in one unit: each death finds out at least one image that kills (`suspects.py`)."""
TRANSIENT = (ConnectionError, TimeoutError)


class EngineSettings(BaseModel):
    """How many processes work at a time, and with how many threads each."""

    model_config = ConfigDict(extra="forbid")

    workers: int | None = Field(None, ge=1)
    """Processes at a time; by default as many as the processors (or GPUs) allow."""
    threads: int = Field(1, ge=1)
    """Threads of one task. Part of the result's identity, so never derived from the machine."""


@dataclass(frozen=True)
class Unit:
    """One committed piece of a stage: `function(*args, out=folder)` fills the folder `name`."""

    name: str
    args: tuple
    images: int = 0
    """How many images it holds, where that is known before; else `weight` stands for it."""
    weight: int = 0


@dataclass
class StageTime:
    """What a stage took, for timings.json."""

    name: str
    seconds: float = 0.0
    images: int = 0
    worked: int = 0
    """Of the images, how many were not done before."""
    cached: bool = True


@dataclass
class Engine:
    """Runs stages below `work`; use as a context manager, which holds this run's scratch folder."""

    work: Path
    settings: EngineSettings = field(default_factory=EngineSettings)
    times: list[StageTime] = field(default_factory=list)
    _ray: Any = None
    _joined: bool = False
    _lock: Any = None
    _bar: StageBar | None = None
    _stage_began: float = 0.0
    _workers: dict[str, list] = field(default_factory=dict)
    _bar_stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Engine:
        self.scratch = self.work / "scratch" / f"{os.getpid()}-{time.time_ns()}"
        with disk_full_is_said(self.work):
            self.scratch.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.scratch)
            self.scratch.mkdir()
        _sweep(self.scratch.parent)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ray is not None and not self._joined:
            self._ray.shutdown()
        shutil.rmtree(self.scratch, ignore_errors=True)
        _lock_file(self.scratch).unlink(missing_ok=True)
        self._lock.close()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Group the runs of a stage under one bar and one entry of `times`."""
        self.times.append(StageTime(name))
        self._stage_began = time.monotonic()
        with contextlib.ExitStack() as self._bar_stack:
            self._bar_stack.callback(self._dismiss)
            self._bar = None
            yield
            if self._bar is not None:
                self._bar.note("")  # what was being done is no news on the final line
        self._bar = None
        self.times[-1].seconds = time.monotonic() - self._stage_began

    def run(
        self,
        folder: Path,
        function: Callable[..., dict | None],
        units: Sequence[Unit],
        *,
        setup: Callable[..., Any] | None = None,
        setup_args: tuple = (),
        gpus: int = 0,
        scratch: Path | None = None,
        note: str = "",
        flat: bool = False,
    ) -> list[dict[str, Any]]:
        """Run what is not committed of `units` into `folder/<unit.name>`; return every result.

        With `setup`, workers are actors that call `setup(*setup_args)` once and hand the value
        on as the function's first argument. `scratch` must share a file system with `folder`.
        With `flat`, a unit's files lie in `folder` itself, behind the mark `<name>_stats.json`.
        The results stand in the order of `units`, whatever the order of completion.
        """
        known = {} if flat else _manifest(folder)
        results = {unit.name: committed(folder / unit.name, flat, known) for unit in units}
        missing = [unit for unit in units if results[unit.name] is None]
        entry = self.times[-1]
        if missing:
            entry.cached = False
            call = _Call(function, folder, scratch or self.scratch, flat)
            bar = self._stage_bar(missing, units, note)
            counted, weight, whole = bar.done, 0, sum(unit.weight for unit in missing)
            for unit, result in self._execute(entry.name, call, missing, setup, setup_args, gpus):
                results[unit.name] = result
                bar.advance(unit.images or (unit.weight and result["images"]))
                if unit.weight:
                    weight += unit.weight
                    bar.total = counted + round((bar.done - counted) * whole / weight)
        if any(unit.weight for unit in units):
            entry.images += sum(result["images"] for result in results.values())
            entry.worked += sum(results[unit.name]["images"] for unit in missing)
        entry.images = max(entry.images, sum(unit.images for unit in units))
        entry.worked = max(entry.worked, sum(unit.images for unit in missing))
        if not flat and not set(results) <= set(known):
            with disk_full_is_said(folder):
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / STAGE_MANIFEST, {**known, **results}, scratch or self.scratch)
        return [results[unit.name] for unit in units]

    def _stage_bar(self, missing: Sequence[Unit], units: Sequence[Unit], note: str) -> StageBar:
        """Return the stage's bar, opened when the first unit is missing (Ray's start counts)."""
        self._start()
        if self._bar is None:
            self._bar = self._bar_stack.enter_context(stage_bar(self.times[-1].name, None))
        if total := sum(unit.images for unit in units):
            self._bar.total = (self._bar.total or 0) + total
            self._bar.skip(total - sum(unit.images for unit in missing))
        if note:
            self._bar.note(note)
        return self._bar

    def _execute(
        self,
        stage: str,
        call: _Call,
        units: Sequence[Unit],
        setup: Callable | None,
        setup_args: tuple,
        gpus: int,
    ) -> Iterator[tuple[Unit, dict]]:
        """Yield each unit with its result as it is committed; at most two a worker in flight."""
        ray = self._start()
        slots = self._slots(ray, gpus, len(units))
        resources = {"num_gpus": gpus} if gpus else {"num_cpus": self.settings.threads}
        # Ray holds back what there is no processor for, but knows nothing of `workers`.
        most = slots if self.settings.workers and not setup else 2 * slots
        waiting = list(reversed(units))
        in_flight: dict[Any, tuple[Unit, int]] = {}
        try:
            if setup:
                try:
                    workers = self._set_up(ray, setup, setup_args, resources, slots)
                except Exception as error:
                    raise _readable(error, stage, "start", self.work) from error
                load = [0] * slots
            else:
                self._dismiss()
                task = ray.remote(
                    max_retries=TRIES, retry_exceptions=list(TRANSIENT), max_calls=0, **resources
                )(_run_unit)
            while waiting or in_flight:
                while waiting and len(in_flight) < most:
                    unit = waiting.pop()
                    if setup:
                        slot = load.index(min(load))
                        load[slot] += 1
                        in_flight[workers[slot].run.remote(call, unit)] = (unit, slot)
                    else:
                        in_flight[task.remote(call, unit)] = (unit, 0)
                done, _ = ray.wait(list(in_flight), num_returns=1, timeout=1)
                self._bar.under_way = 0 if done else under_way(call.scratch)
                for reference in done:
                    unit, slot = in_flight.pop(reference)
                    if setup:
                        load[slot] -= 1
                    try:
                        result = ray.get(reference)
                    except Exception as error:
                        raise _readable(error, stage, unit.name, self.work) from error
                    yield unit, result
        finally:
            for reference in () if setup else in_flight:
                ray.cancel(reference, force=True)

    def _set_up(self, ray: Any, setup: Callable, args: tuple, resources: dict, count: int) -> list:
        """Return actors that hold `setup(*args)`; they live on for the next runs with `setup`."""
        workers = self._workers.setdefault(f"{setup.__qualname__}{args}", [])
        actor = ray.remote(max_restarts=-1, max_task_retries=DEATHS, **resources)(_Worker)
        workers += [actor.remote(setup, args) for _ in range(count - len(workers))]
        ready = [worker.ready.remote() for worker in workers]
        # All have answered before one failure is raised: Ray tells of tasks that it has to kill.
        ray.wait(ready, num_returns=len(ready))
        ray.get(ready)
        return workers[:count]

    def _dismiss(self) -> None:
        for worker in (worker for workers in self._workers.values() for worker in workers):
            self._ray.kill(worker)
        self._workers.clear()

    def _slots(self, ray: Any, gpus: int, units: int) -> int:
        resources = ray.cluster_resources()
        room = int(resources.get("GPU", 0)) // gpus if gpus else 0
        if gpus and not room:
            raise LvdError(
                "device: cuda was asked for, but Ray sees no GPU: set embedder device=cpu"
            )
        room = room or max(1, int(resources.get("CPU", 1)) // self.settings.threads)
        return max(1, min(room, self.settings.workers or room, units))

    def _start(self) -> Any:
        """Import ray and join the cluster at RAY_ADDRESS, or start a quiet local one.

        A session that this process has already is joined, and left running.
        """
        if self._ray is not None:
            return self._ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        address = os.environ.get("RAY_ADDRESS")
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": str(self.settings.threads),
        }
        began = time.monotonic()
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        if not address:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            os.environ.update(environment)
        with stage_bar("start Ray", None):
            import ray

            self._ray, self._joined = ray, ray.is_initialized()
            try:
                if address and not self._joined:
                    ray.init(address=address, runtime_env={"env_vars": environment}, **quiet)
                elif not self._joined:
                    ray.init(
                        address="local",
                        num_cpus=self._processors(),
                        include_dashboard=False,
                        object_store_memory=128 * 2**20,
                        **quiet,
                    )
            except Exception as error:  # bare ones too, when the machine is too busy
                remedy = (
                    f"is a cluster running at RAY_ADDRESS={address}? unset it for a local one"
                    if address
                    else "run it again, or check free space in /tmp and /dev/shm"
                )
                said = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
                raise LvdError(f"Ray did not start ({said}): {remedy}") from error
        took = time.monotonic() - began
        self._stage_began += took
        self.times.insert(-1, StageTime("start Ray", took, cached=False))
        return ray

    def _processors(self) -> int:
        wanted = (self.settings.workers or 0) * self.settings.threads
        return max(wanted, len(os.sched_getaffinity(0)), self.settings.threads)


@dataclass(frozen=True)
class _Call:
    """How the units of one run are computed and committed; travels to the workers."""

    function: Callable
    folder: Path
    scratch: Path
    flat: bool

    def __call__(self, unit: Unit, *state: Any) -> dict:
        args = (*state, *unit.args)
        return commit_unit(self.function, args, self.folder / unit.name, self.scratch, self.flat)


class _Worker:
    """An actor that holds what is dear to set up, such as a loaded model."""

    def __init__(self, setup: Callable, args: tuple) -> None:
        self._setup, self._args = setup, args

    @cached_property
    def state(self) -> Any:
        # Not in __init__: Ray tries a constructor that raises again and again, and hides the error.
        return self._setup(*self._args)

    def ready(self) -> bool:
        return self.state is not None

    def run(self, call: _Call, unit: Unit) -> dict:
        for _ in range(TRIES - 1):
            with contextlib.suppress(*TRANSIENT):
                return call(unit, self.state)
        return call(unit, self.state)


def _run_unit(call: _Call, unit: Unit) -> dict:
    return call(unit)


def _manifest(folder: Path) -> dict[str, dict]:
    path = folder / STAGE_MANIFEST
    return read_json(path) if path.exists() else {}


def _readable(error: Exception, stage: str, unit: str, work: Path) -> LvdError:
    """Return the one line that a user needs of a failed task; the trace goes to a file."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, LvdError):
        return cause
    log = work / "failures" / f"{stage}-{unit}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(traceback.format_exception(error)))
    said = (str(cause).strip().splitlines() or [""])[0]
    return LvdError(f"{stage} failed on {unit}: {type(cause).__name__}: {said} (trace: {log})")


def _lock_file(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _lock(folder: Path) -> Any:
    """Return the locked stream that keeps other runs from sweeping `folder`."""
    while True:
        stream = _lock_file(folder).open("w")
        fcntl.flock(stream, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if _lock_file(folder).stat().st_ino == os.fstat(stream.fileno()).st_ino:
                return stream
        stream.close()


def _sweep(scratches: Path) -> None:
    """Remove the scratch folders of runs that are no more: nobody holds their lock."""
    for lock in sorted(scratches.glob("*.lock")):
        with contextlib.suppress(OSError), lock.open("r") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
