"""What is said first of a training: how far it is, what it learned, and what looks wrong."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from shared.commands import called
from shared.pages.verdicts import Remedy, Verdict
from shared.progress import duration
from train.monitoring.collapse import WORDS
from train.monitoring.status import State, safe
from train.report.history import Curve, History

WAITED = 0.25
"""Share of the time spent waiting for data from which a remedy is given."""
BROKEN = 0.01
"""Share of broken images from which they are told."""
FELL = 0.1
"""Share of its best that a score may have lost at the end before that is told."""
TOO_MANY = 5
"""Steps in a row that were not finite, after which a run stops itself (`train.monitoring.watch`)."""
SCORES = {
    "knn": "k-NN top-1 on the labelled images",
    "recognition": "the share of pictures known by another view of them",
}


def verdict(state: State, history: History) -> Verdict:
    """Return what is to be said first of a run, from its state and its metrics."""
    remedies = list(_remedies(state, history))
    sentences = [_how_far(state, history), *_learned(history.curves)]
    if not remedies:
        sentences.append("Nothing looks wrong.")
    return Verdict(sentences, remedies)


def _how_far(state: State, history: History) -> str:
    of = "" if state.total is None else f" of {state.total:,}"
    images = state.done * state.run["recipe"]["batch_size"] if "recipe" in state.run else 0
    if state.kind == "finished":
        return f"Finished: {state.done:,} steps on {images:,} images, counted with repetitions."
    if state.kind == "cut off":
        return f"Cut off after step {state.done:,}{of} ({safe(state)})."
    left = state.left(history.last.get("images_per_second"))
    return f"At work: {state.done:,}{of} steps are done" + (
        f", about {duration(left)} are left." if left is not None else "."
    )


def _learned(curves: dict[str, Curve]) -> Iterator[str]:
    for name, meaning in SCORES.items():
        curve = curves.get(name)
        if curve is None or not curve.points:
            continue
        if len(curve.points) == 1:
            yield f"{meaning[0].upper()}{meaning[1:]} is {curve.first:.1%} at the start."
            continue
        went = _went(curve.first, curve.last)
        yield (
            f"{meaning[0].upper()}{meaning[1:]} {went} from {curve.first:.1%} to {curve.last:.1%}"
            + (f", {curve.high[0]:.1%} at best." if curve.high[0] > curve.last else ".")
        )


def _went(first: float, last: float) -> str:
    return "rose" if last > first else "fell" if last < first else "stayed"


def _remedies(state: State, history: History) -> Iterator[Remedy]:
    last, curves = history.last, history.curves
    if state.kind == "cut off":
        yield from _stopped(state)
    if last and last.get("loss", 0) is None:
        yield Remedy(
            "The loss of the last line is not finite. Lower optimiser.base_lr, or try "
            "parallel.precision=float32."
        )
    yield from _collapses(history)
    if (skipped := last.get("skipped")) and state.kind != "cut off":
        yield Remedy(
            f"{skipped:,} steps were skipped, which were not finite; skipped.jsonl names their "
            "images. If they grow in number, lower optimiser.base_lr or set "
            "parallel.precision=float32."
        )
    yield from _scores_lost(state, curves)
    seen = state.done * state.run.get("recipe", {}).get("batch_size", 0)
    if last.get("broken", 0) > BROKEN * seen:
        yield Remedy(
            f"{last['broken']:,} of {seen:,} images could not be read, and others took their place; "
            "broken-*.txt names them."
        )
    waited = curves.get("data_wait")
    if waited and (share := _mean(waited)) > WAITED:
        yield Remedy(
            f"{share:.0%} of the time was spent waiting for data: raise data.workers, or keep small "
            "images on the device with data.resident=true."
        )


def _stopped(state: State) -> Iterator[Remedy]:
    """Yield why a run that was cut off may have stopped, and how it goes on."""
    if odd := _not_finite(state):
        yield Remedy(
            f"It stopped itself: {TOO_MANY} steps in a row were not finite ({', '.join(odd)}). The "
            "same command goes on from the last checkpoint; with a lower optimiser.base_lr, or "
            "parallel.precision=float32, begin anew with --resume never."
        )
    else:
        yield Remedy("It did not come to its end: run the same command to go on.")


def _not_finite(state: State) -> list[str]:
    """Return what was not finite in the last steps, where so many in a row were skipped."""
    try:
        text = (state.out / "skipped.jsonl").read_text(encoding="utf-8", errors="replace")
        skips: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
        by_step = {skip["step"]: skip["not_finite"] for skip in skips if skip["rank"] == 0}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    steps = sorted(by_step)[-TOO_MANY:]
    in_a_row = len(steps) == TOO_MANY and steps[-1] - steps[0] == TOO_MANY - 1
    return list(by_step[steps[-1]]) if in_a_row and steps[-1] >= state.done - 1 else []


def _collapses(history: History) -> Iterator[Remedy]:
    """Yield the signs of collapse: those of the last line, then those that have gone."""
    now = history.last.get("collapse") or []
    for name, span in history.signs.items():
        words = WORDS.get(name)
        meaning = words.meaning if words else f"sign {name}"
        remedy = f"Try: {words.remedy}." if words else ""
        if name in now:
            yield Remedy(f"Collapse? Since step {span.first:,}, {meaning}. {remedy}")
        else:
            when = f"steps {span.first:,} to {span.last:,}, in {span.lines:,} lines"
            yield Remedy(f"At {when}, {meaning}; it has gone since. Should it come back: {remedy}")


def _scores_lost(state: State, curves: dict[str, Curve]) -> Iterator[Remedy]:
    for name, meaning in SCORES.items():
        curve = curves.get(name)
        if curve is None or len(curve.points) < 2:
            continue
        best, step = curve.high
        if curve.last < (1 - FELL) * best:
            command = ""
            if any((state.out / "checkpoints").glob(f"step-{step:07d}")):
                source = shlex.quote(f"{state.out}/checkpoints/step-{step:07d}")
                command = f"{called('lvd-train')} export {source} --out {shlex.quote(f'{state.out}-best')}"
            yield Remedy(
                f"{meaning[0].upper()}{meaning[1:]} was {best:.1%} after step {step:,} and is "
                f"{curve.last:.1%} now: train for fewer steps, or lower optimiser.base_lr.",
                command,
            )


def _mean(curve: Curve) -> float:
    points = curve.points
    return sum(value for _, value in points) / max(1, len(points))
