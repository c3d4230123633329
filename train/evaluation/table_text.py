"""Sets a table of scores as plain text of at most 100 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from shared.progress import printable
from train.evaluation.scores import Score
from train.evaluation.table import Table

WIDTH = 100
LONGEST_NAME = 40
"""Of longer ones the end stands in the table; beneath they are whole."""
_GAP = "  "


class _Column(NamedTuple):
    task: str
    metric: str
    setting: str
    """Empty where each model has one score only: then it stands beneath the table."""
    scores: Mapping[str, Score]
    """By model."""


def as_text(table: Table) -> str:
    """Return a line for each model with its scores side by side, and notes beneath.

    What does not fit into 100 columns goes on in a second block of lines. `*` marks the best score
    of a column, `↓` a metric of which the lowest is the best.
    """
    columns, models = _columns(table), [row.model for row in table.rows]
    names = ["", "", "", *_short(models)]
    lines = []
    for block in _blocks([_cells(column, models) for column in columns], _widest(names)):
        rows = zip(_aligned(names, str.ljust), *block, strict=True)
        lines += [line for row in rows if (line := _GAP.join(row).rstrip())] + [""]
    lower = any(
        not score.higher_is_better for column in columns for score in column.scores.values()
    )
    legend = ["* the best of its column"] * (len(models) > 1) + ["↓ the lower, the better"] * lower
    lines.append("; ".join(legend))
    settings = [
        (model, column.task, score.setting)
        for column in columns
        for model, score in column.scores.items()
        if score.setting and not column.setting
    ]
    notes = [
        (row.model, score.task, sentence)
        for row in table.rows
        for score in row.scores
        for sentence in score.sentences
    ]
    for title, entries in (
        ("Settings", _gathered(settings, models)),
        ("Notes", [*table.notes, *_gathered(notes, models)]),
        (
            "What each model sees, by its own config",
            dict.fromkeys(need for row in table.rows for need in row.needs),
        ),
        ("Failed", table.failures()),
    ):
        if entries:
            lines += ["", title, *(line for entry in entries for line in _wrapped(entry))]
    return "\n".join(lines) + "\n"


def _columns(table: Table) -> list[_Column]:
    scores = [(row.model, score) for row in table.rows for score in row.scores]
    met = [(model, score.task, score.metric) for model, score in scores]
    several = {place[1:] for place in set(met) if met.count(place) > 1}
    found: dict[tuple[str, str, str], dict[str, Score]] = {}
    for model, score in scores:
        place = (score.task, score.metric)
        key = (*place, score.setting if place in several else "")
        found.setdefault(key, {})[model] = score
    columns = [_Column(*key, by_model) for key, by_model in found.items()]
    return sorted(columns, key=lambda column: table.tasks.index(column.task))


def _cells(column: _Column, models: Sequence[str]) -> list[str]:
    """Return a column's lines, equally wide: task, metric, setting, and each model's score."""
    signed = {
        name: s.value if s.higher_is_better else -s.value for name, s in column.scores.items()
    }
    ranked = [value for value in signed.values() if not math.isnan(value)]
    best = max(ranked) if len(signed) > 1 and ranked else None
    scores = [
        f"{column.scores[model].value:.4f}{'*' if signed[model] == best else ' '}"
        if model in signed
        else "- "
        for model in models
    ]
    lower = any(not score.higher_is_better for score in column.scores.values())
    header = (column.task, column.metric + " ↓" * lower, column.setting)
    return _aligned([*(f"{text} " for text in header), *scores], str.rjust)


def _aligned(cells: Sequence[str], adjust: Callable[[str, int], str]) -> list[str]:
    return [adjust(cell, _widest(cells)) for cell in cells]


def _widest(cells: Sequence[str]) -> int:
    return max(map(len, cells))


def _blocks(columns: Sequence[list[str]], names: int) -> Iterator[list[list[str]]]:
    """Yield the columns that fit beside names of so many characters, in order."""
    block: list[list[str]] = []
    for column in columns:
        width = names + sum(len(_GAP) + len(lines[0]) for lines in [*block, column])
        if block and width > WIDTH:
            yield block
            block = []
        block.append(column)
    yield block


def _short(names: Sequence[str]) -> list[str]:
    """Return what stands for each name: the ends of long ones, numbered where these are equal."""
    ends = [
        name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]
        for name in map(printable, names)
    ]
    return [
        f"({number}) {end}" if ends.count(end) > 1 else end
        for number, end in enumerate(ends, start=1)
    ]


def _gathered(said: Iterable[tuple[str, str, str]], models: Sequence[str]) -> list[str]:
    """Return a line for each text that is said of models and tasks; models go without saying if all."""
    by_task: dict[tuple[str, str], dict[str, None]] = {}
    for model, task, text in said:
        by_task.setdefault((text, task), {})[model] = None
    tasks: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (text, task), of in by_task.items():
        tasks.setdefault((text, tuple(of)), []).append(task)
    return [
        ", ".join(some if len(of) == len(models) else [*of, *some]) + f": {text}"
        for (text, of), some in tasks.items()
    ]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
