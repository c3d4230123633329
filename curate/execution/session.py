"""Opens what a run works with: its work folder, scratch, executor and monitor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from curate.execution.auto import AutoExecutor
from curate.execution.executor import Executor
from curate.execution.inline import InlineExecutor
from curate.execution.monitor import Monitor, lives
from curate.execution.on_ray import RayExecutor
from curate.execution.runner import StageRunner
from curate.stage import EngineSettings
from shared.datasets import WORK_MARKER
from shared.errors import LvdError
from shared.locks import scratch_folder
from shared.storage import read_optional, reraise_disk_full, write_json
from shared.stores import store_of

ExecutorName = Literal["auto", "ray", "inline"]
STATUS = "status"


@contextmanager
def open_runner(
    work: Path, settings: EngineSettings, executor: ExecutorName, out: Path | None = None
) -> Iterator[StageRunner]:
    """Give a runner on `work`; `lvd-curate status` finds it there, and by `out`."""
    if (store := store_of(work / WORK_MARKER)) is not None:
        require_one_machine(executor, f"--work {store.url}")
    with ExitStack() as stack:
        with reraise_disk_full(work):
            work.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(scratch_folder(work / "scratch"))
            if not (work / WORK_MARKER).exists():
                write_json(work / WORK_MARKER, {"format": 2}, scratch)
        for path in (work / STATUS).glob("*.json"):
            if (report := read_optional(path)) and not lives(report):
                path.unlink(missing_ok=True)  # of a run that was killed
        paths = [work / STATUS / f"{scratch.name}.json"]
        if out is not None:
            paths.append(status_file(out))
        monitor = stack.enter_context(Monitor(paths, out))
        on_ray = RayExecutor(settings)
        engines: dict[ExecutorName, Executor] = {
            "auto": AutoExecutor(on_ray),
            "ray": on_ray,
            "inline": InlineExecutor(),
        }
        runner = StageRunner(work, scratch, stack.enter_context(engines[executor]), monitor)
        on_ray.started = runner.note_start
        yield runner


def require_one_machine(executor: ExecutorName, place: str) -> None:
    """Raise LvdError where the machines of a cluster would each work on a copy of their own."""
    if executor != "inline" and os.environ.get("RAY_ADDRESS"):
        raise LvdError(
            f"{place}: the machines of a Ray cluster want a folder that all of them see: name a "
            "shared one, or unset RAY_ADDRESS"
        )


def status_file(out: Path) -> Path:
    """Return where the run that builds `out` says how far it is."""
    return out.with_name(f".{out.name}.status.json")
