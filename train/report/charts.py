"""The charts of a training: one small curve for each metric, in groups."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from shared.pages.charts import NARROW, Palette, draw_chart, short
from train.report.history import Curve, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = Palette(("accent", "wrong", "soft"))
_LEFT = 0.13
TABLED = 10
"""Steps of the table of a group."""


@dataclass(frozen=True)
class Plot:
    """A curve, its name, what it means, and how it went, in words."""

    name: str
    meaning: str
    said: str
    svg: Markup


@dataclass(frozen=True)
class Group:
    """Curves of one kind, and some of their points as a table."""

    id: str
    title: str
    note: str
    plots: list[Plot]
    headings: list[str]
    rows: list[list[str]]


GROUPS: dict[str, tuple[str, str, dict[str, str]]] = {
    "losses": (
        "Losses",
        "As they enter the sum, before their weights. DINO's and iBOT's need not fall: the teacher "
        "moves with the student.",
        {
            "loss": "the weighted sum",
            "dino": "CLS tokens: student against teacher",
            "ibot": "masked patches: student against teacher",
            "infonce": "views of one picture against all others",
            "koleo": "how evenly features spread; lower is more even",
        },
    ),
    "scores": (
        "Scores",
        "Of the teacher, on labelled images that serve nothing else.",
        {"knn": "k-NN top-1"},
    ),
    "collapse": (
        "Signs of collapse",
        "After the first collapse.grace steps, a figure under its dashed line is a sign of collapse.",
        {
            "feature_rank": "effective rank of a batch's features",
            "teacher_entropy": "entropy of the teacher's targets, nats",
            "kl_to_uniform": "KL of the targets to uniform, nats",
            "prototypes_won": "prototypes that come first for some view",
            "prototype_usage": "perplexity of the mean target, as a share of the prototypes",
        },
    ),
    "schedules": (
        "Schedules",
        "",
        {
            "lr": "learning rate",
            "weight_decay": "weight decay",
            "momentum": "momentum of the teacher",
            "teacher_temperature": "temperature of the teacher",
        },
    ),
    "throughput": (
        "Throughput",
        "Over the steps since the line before. A step is waiting for data, and work on it.",
        {
            "images_per_second": "images a second",
            "step_seconds": "seconds of a step",
            "work_seconds": "of these, work",
            "wait_seconds": "of these, waiting for data",
            "knn_seconds": "seconds of a k-NN score",
            "memory_gib": "memory of the first process, GiB",
        },
    ),
    "gradients": ("Gradient norms", "Before they are clipped.", {}),
}


def draw_groups(history: History, recipe: Mapping[str, Any]) -> list[Group]:
    """Return the charts of all metrics that a run has written, and of no others."""
    curves = history.curves | _parts_of_a_step(history)
    limits = _limits(recipe)
    found = []
    for id, (title, note, meanings) in GROUPS.items():
        if id == "gradients":
            prefix = "gradient_norm/"
            meanings = {n: n.removeprefix(prefix) for n in curves if n.startswith(prefix)}
        there = {
            name: curve
            for name in meanings
            if (curve := curves.get(name)) and len(curve.points) > 1
        }
        if there:
            plots = [_plot(name, meanings[name], c, limits.get(name)) for name, c in there.items()]
            headings, rows = _table(there)
            found.append(Group(id, title, note, plots, headings, rows))
    return found


def _parts_of_a_step(history: History) -> dict[str, Curve]:
    """Return the seconds of a step that are work and waiting, from its length and the share waited."""
    length, share = (history.curves.get(name) for name in ("step_seconds", "data_wait"))
    if length is None or share is None:
        return {}
    work, wait = Curve(), Curve()
    for (step, seconds), (_, waited) in zip(length.points, share.points, strict=False):
        work.add(round(step), seconds * (1 - waited))
        wait.add(round(step), seconds * waited)
    return {"work_seconds": work, "wait_seconds": wait}


def _limits(recipe: Mapping[str, Any]) -> dict[str, float]:
    """Return under which value a metric is a sign of collapse, as far as the recipe alone says it."""
    collapse, heads = recipe.get("collapse") or {}, recipe.get("heads") or {}
    limits = {}
    for metric, key in (("teacher_entropy", "entropy"), ("kl_to_uniform", "divergence")):
        if key in collapse:
            limits[metric] = collapse[key]
    prototypes = (heads.get("dino") or {}).get("prototypes")
    if prototypes and "prototypes" in collapse and "batch_size" in recipe:
        limits["prototypes_won"] = collapse["prototypes"] * min(prototypes, recipe["batch_size"])
    return limits


def _plot(name: str, meaning: str, curve: Curve, limit: float | None) -> Plot:
    percent = name == "knn"

    def draw(axes: Axes) -> None:
        steps, values = zip(*curve.points, strict=True)
        marker = "o" if len(steps) <= 30 else None
        axes.plot(
            steps, values, color=_COLOURS["accent"], linewidth=1.5, marker=marker, markersize=3
        )
        if limit is not None:
            axes.axhline(limit, color=_COLOURS["wrong"], linewidth=1.2, linestyle=(0, (4, 3)))
        axes.margins(x=0.02, y=0.08)
        axes.locator_params(axis="x", nbins=5)
        axes.locator_params(axis="y", nbins=5)
        axes.xaxis.set_major_formatter(short)
        axes.yaxis.set_major_formatter(
            (lambda v, _: f"{100 * v:g}%") if percent else (lambda v, _: f"{v:.4g}")
        )
        axes.set_xlabel("steps")

    svg = draw_chart(re.sub(r"\W+", "-", name), draw, _COLOURS, NARROW, left=_LEFT)
    return Plot(name, meaning, _said(curve, limit, percent), svg)


def _said(curve: Curve, limit: float | None, percent: bool) -> str:
    def number(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.4g}"

    words = [f"{number(curve.first)} to {number(curve.last)}"]
    low, high = curve.low, curve.high
    if low[0] < min(curve.first, curve.last):
        words.append(f"lowest {number(low[0])} at step {low[1]:,}")
    if high[0] > max(curve.first, curve.last):
        words.append(f"highest {number(high[0])} at step {high[1]:,}")
    if limit is not None:
        words.append(f"a sign under {number(limit)}")
    if curve.lost:
        words.append(f"{curve.lost:,} times not finite")
    if curve.lines_a_point > 1:
        words.append(f"each point the mean of {curve.lines_a_point:,} lines")
    return "; ".join(words)


def _table(curves: Mapping[str, Curve]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of some points, evenly spread, of the curves of a group."""
    longest = max(curves.values(), key=lambda curve: len(curve.points)).points
    places = sorted({round(i * (len(longest) - 1) / TABLED) for i in range(TABLED + 1)})
    by_step = {name: dict(_rounded(curve)) for name, curve in curves.items()}
    rows = [
        [f"{round(longest[place][0]):,}", *_row(by_step.values(), round(longest[place][0]))]
        for place in places
    ]
    return ["step", *curves], rows


def _rounded(curve: Curve) -> Iterator[tuple[int, float]]:
    return ((round(step), value) for step, value in curve.points)


def _row(by_step: Any, step: int) -> Iterator[str]:
    return (f"{values[step]:.4g}" if step in values else "" for values in by_step)
