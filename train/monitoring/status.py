"""Says how far a training is: finished, at work, or cut off. Takes no lock, and imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.datasets.folders import describe_folder
from shared.errors import LvdError
from shared.progress import duration, rate
from shared.storage.files import read_json, read_optional
from shared.storage.locks import Holder, holder
from train.monitoring.metrics import METRICS, read_metrics
from train.persistence.marks import MANIFEST

REMEDY = "run the same command to go on"


@dataclass(frozen=True)
class State:
    """How far a run is."""

    out: Path
    kind: Literal["at work", "finished", "cut off"]
    run: dict[str, Any]
    """What `run.json` says; {} before it is written."""
    done: int
    """Steps behind the last line of metrics; 0 before the first, and of a finished run all."""
    holder: Holder | None
    """The process that is at work."""
    saved: int | None
    """The steps behind its newest whole checkpoint."""

    @property
    def total(self) -> int | None:
        """The steps that the run takes, where that is known."""
        return self.run.get("steps")

    def left(self, images_per_second: float | None) -> float | None:
        """Return the seconds that are left at this rate."""
        if not images_per_second or self.total is None:
            return None
        return (self.total - self.done) * self.run["recipe"]["batch_size"] / images_per_second


def state_of(out: Path, last: Mapping[str, Any]) -> State:
    """Return the state of the run in `out`, whose last line of a step's metrics is `last`, or {}.

    LvdError where `out` is no run of lvd-train.
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
    done = last.get("step", -1) + 1
    kind: Literal["at work", "finished", "cut off"] = "at work" if at_work else "cut off"
    if at_work is None and (out / "done.json").exists():
        kind, done = "finished", read_json(out / "done.json")["steps"]
    return State(out, kind, run, done, at_work, _checkpoint(out / "checkpoints"))


def status(out: Path) -> str:
    """Return a line on the run in `out`, and one on what it has learned so far.

    The last line of its metrics counts: a run at work is up to `log.every` steps further. LvdError
    where `out` is no run of lvd-train.
    """
    last, scores = _last(out)
    state = state_of(out, last)
    of = "" if state.total is None else f" of {state.total:,}"
    if state.holder is not None:
        where = f"at work (process {state.holder.pid} on {state.holder.host})"
        where += f": {state.done:,}{of} steps" if last else ": no step is measured yet"
        lines = [f"{out}: {where}", *_rates(state, last)]
    elif state.kind == "finished":
        lines = [f"{out}: finished: {state.done:,} steps"]
    else:
        lines = [f"{out}: cut off behind {state.done:,}{of} steps ({safe(state)}): {REMEDY}"]
    return "\n".join([*lines, *_learned(last, scores)])


def safe(state: State) -> str:
    """Return up to which step a run that was cut off is safe, in words."""
    return "no checkpoint yet" if state.saved is None else f"safe up to step {state.saved:,}"


def safe_after_stop(out: Path) -> str:
    """Return what is safe of a run that was stopped at once, and what the same command does."""
    saved = _checkpoint(out / "checkpoints")
    if saved is None:
        return "no checkpoint yet: the same command begins again"
    return f"safe up to step {saved:,}: {REMEDY}"


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


def _rates(state: State, last: dict[str, Any]) -> list[str]:
    speed = last.get("images_per_second")
    if not speed:
        return []
    words = [rate(1, 1 / speed)]
    if (left := state.left(speed)) is not None:
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
