"""Says how far a training is: finished, at work, or cut off. Takes no lock, and imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.errors import LvdError
from shared.folders import describe_folder
from shared.locks import holder
from shared.progress import duration, rate
from shared.storage import read_json, read_optional
from train.monitoring.metrics import METRICS, read_metrics
from train.persistence.marks import MANIFEST

REMEDY = "run the same command to go on"


def status(out: Path) -> str:
    """Return a line on the run in `out`, and one on what it has learned so far.

    The last line of its metrics counts: a run at work is up to `log.every` steps further. LvdError
    where `out` is no run of lvd-train.
    """
    run = read_optional(out / "run.json")
    at_work = holder(out / ".lock")
    if "recipe" not in run and at_work is None:
        whose = describe_folder(out)
        raise LvdError(
            f"{out} is {whose}"
            if whose
            else f"no training has begun in {out}: name the --out of one"
        )
    last, scores = _last(out)
    done, total = last.get("step", -1) + 1, run.get("steps")
    of = "" if total is None else f" of {total:,}"
    if at_work is not None:
        where = f"at work (process {at_work.pid} on {at_work.host})"
        where += f": {done:,}{of} steps" if last else ": no step is measured yet"
        lines = [f"{out}: {where}", *_rates(run, last, done, total)]
    elif (out / "done.json").exists():
        lines = [f"{out}: finished: {read_json(out / 'done.json')['steps']:,} steps"]
    else:
        saved = _checkpoint(out / "checkpoints")
        safe = "no checkpoint yet" if saved is None else f"safe up to step {saved:,}"
        lines = [f"{out}: cut off behind {done:,}{of} steps ({safe}): {REMEDY}"]
    return "\n".join([*lines, *_learned(last, scores)])


def _last(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the last line of a step, and the last scores."""
    last: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    if (out / METRICS).exists():
        for line in read_metrics(out / METRICS):
            if "loss" in line:
                last = line
            else:
                scores |= line
    return last, scores


def _rates(run: dict[str, Any], last: dict[str, Any], done: int, total: int | None) -> list[str]:
    speed = last.get("images_per_second")
    if not speed:
        return []
    words = [rate(1, 1 / speed)]
    if total is not None:
        left = (total - done) * run["recipe"]["batch_size"] / speed
        words.append(f"about {duration(left)} left")
    if last.get("data_wait") is not None:
        words.append(f"{last['data_wait']:.0%} of the time spent waiting for data")
    return ["  " + ", ".join(words)]


def _learned(last: dict[str, Any], scores: dict[str, Any]) -> list[str]:
    words = []
    if last:
        loss = last["loss"]
        words.append("loss not finite" if loss is None else f"loss {loss:.4g}")
        words += [f"{last[name]:,} {name}" for name in ("broken", "skipped") if last.get(name)]
        if last.get("collapse"):
            words.append(f"signs of collapse: {', '.join(last['collapse'])}")
    words += [
        f"{name} {scores[name]:.1%}"
        for name in ("knn", "linear", "recognition")
        if scores.get(name)
    ]
    return ["  " + ", ".join(words)] if words else []


def _checkpoint(folder: Path) -> int | None:
    steps = [int(path.parent.name[5:]) for path in folder.glob(f"step-*[0-9]/{MANIFEST}")]
    return max(steps, default=None)
