"""Opens what a run works with: its work folder, scratch, executor and monitor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from curate.embedding.journal import publish_journals
from curate.execution.auto import AutoExecutor
from curate.execution.executor import Executor
from curate.execution.inline import InlineExecutor
from curate.execution.monitor import Monitor, lives
from curate.execution.on_ray import RayExecutor
from curate.execution.runner import StageRunner
from curate.stage import EngineSettings
from shared.datasets.dataset import Part
from shared.datasets.outputs import WORK_MARKER
from shared.errors import LvdError
from shared.storage.files import read_optional, reraise_disk_full, write_json
from shared.storage.locks import scratch_folder
from shared.storage.remote import is_remote
from shared.storage.store_copies import mark, remove_copy_here
from shared.storage.stores import remove_given, store_of

ExecutorName = Literal["auto", "ray", "inline"]
STATUS = "status"


@contextmanager
def open_runner(
    work: Path, settings: EngineSettings, executor: ExecutorName, out: Path | None = None
) -> Iterator[StageRunner]:
    """Give a runner on `work`; `lvd-curate status` finds it there, and by `out`."""
    store = store_of(work / WORK_MARKER)
    with ExitStack() as stack:
        with reraise_disk_full(work):
            work.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(scratch_folder(work / "scratch"))
            if store is not None:
                mark(store.copy, store.url, settings.copy_bytes)
                stack.callback(remove_given, scratch)
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
        if store is not None:
            on_ray.last = partial(remove_copy_here, store.copy.name)
            on_ray.died = partial(publish_journals, work)
        engines: dict[ExecutorName, Executor] = {
            "auto": AutoExecutor(on_ray),
            "ray": on_ray,
            "inline": InlineExecutor(),
        }
        runner = StageRunner(work, scratch, stack.enter_context(engines[executor]), monitor)
        on_ray.started = runner.note_start
        yield runner


def is_on_cluster(executor: ExecutorName) -> bool:
    """Tell whether units run on the machines of a Ray cluster, which share no copy of a store."""
    return executor != "inline" and bool(os.environ.get("RAY_ADDRESS"))


def require_reach(executor: ExecutorName, work: Path, out: str | None) -> None:
    """Raise LvdError where the machines of a cluster would not see what others of them made.

    Where WORK is on a store, `out`, its URL or None, has to be, and the other way round.
    """
    store = store_of(work / WORK_MARKER)
    if is_on_cluster(executor) and (store is None) != (out is None):
        remote, local = (
            (f"--out {out}", "--work") if store is None else (f"--work {store.url}", "--out")
        )
        raise LvdError(
            f"{remote} is on a store and {local} is not: the machines of a Ray cluster want both on "
            "a store, or both in folders that all of them see"
        )


def require_seen(executor: ExecutorName, work: Path, parts: Iterable[Part]) -> None:
    """Raise LvdError where the machines of a cluster would not see the built-in sample."""
    store = store_of(work / WORK_MARKER)
    if store is None or not is_on_cluster(executor):
        return
    if any(not is_remote(part.root) and Path(part.root).is_relative_to(work) for part in parts):
        raise LvdError(
            f"the built-in sample is made on this machine, where those of a Ray cluster with --work "
            f"{store.url} do not see it: name a crawl and a seed behind URLs"
        )


def status_file(out: Path) -> Path:
    """Return where the run that builds `out` says how far it is."""
    return out.with_name(f".{out.name}.status.json")
