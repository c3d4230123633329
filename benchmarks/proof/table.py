"""The table of the proof: what each arm's trainings reach, with intervals over their seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from shared.storage.files import write_json

FILE, TEXT = "proof.json", "proof.md"
FIGURES = ("knn", "knn_tail", "linear", "linear_tail")
HEADS = ("k-NN", "k-NN, tail", "linear", "linear, tail")
RANDOM = "random"
"""The arm that the others are compared with."""
STEPS, EPOCHS = LENGTHS = "equal steps", "equal epochs"
"""How long the proof trains each arm."""


def add(out: Path, row: Mapping[str, Any]) -> None:
    """Take a finished training into the table, and write it anew."""
    rows = [each for each in read(out) if _name(each) != _name(row)]
    rows.append(dict(row))
    write_json(out / FILE, rows)
    (out / TEXT).write_text(as_text(rows))


def read(out: Path) -> list[dict[str, Any]]:
    """Return the finished trainings, in the order in which they ended."""
    file = out / FILE
    return json.loads(file.read_text()) if file.exists() else []


def has(out: Path, row: Mapping[str, Any]) -> bool:
    """Tell whether the training of this arm, length and seed is in the table."""
    return any(_name(each) == _name(row) for each in read(out))


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown: a line for each arm and length, means over seeds with 95 % intervals.

    Below it, what each arm has more than the random sample of the same seed and length; by `LENGTHS`
    together too, though trainings of one seed begin alike.
    """
    lines = [
        "| arm | images | length | images seen | seeds | " + " | ".join(HEADS) + " |",
        "|---" * (5 + len(HEADS)) + "|",
    ]
    for length, arm in dict.fromkeys((row["length"], row["arm"]) for row in rows):
        same = [row for row in rows if (row["length"], row["arm"]) == (length, arm)]
        figures = [interval([row[name] for row in same]) for name in FIGURES]
        lines.append(
            f"| {arm} | {same[0]['images']:,} | {length} | {same[0]['seen']:,} | {len(same)} | "
            + " | ".join(figures)
            + " |"
        )
    return "\n".join([*lines, *_gains(rows)]) + "\n"


def _gains(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table of differences, in points; none where the random arm is not trained."""
    chance = {(row["length"], row["seed"]): row for row in rows if row["arm"] == RANDOM}
    paired = [row for row in rows if (row["length"], row["seed"]) in chance]
    arms = [arm for arm in dict.fromkeys(row["arm"] for row in paired) if arm != RANDOM]
    told = {(row["arm"], row["length"]): [row["length"]] for row in paired}
    told |= {
        (arm, "both"): list(LENGTHS) for arm in arms if {(arm, n) for n in LENGTHS} <= told.keys()
    }
    lines = []
    for (arm, name), lengths in told.items():
        pairs = [
            (row, chance[row["length"], row["seed"]])
            for row in paired
            if row["arm"] == arm and row["length"] in lengths
        ]
        gains = [interval([row[key] - one[key] for row, one in pairs]) for key in FIGURES]
        if arm != RANDOM:
            lines.append(f"| {arm} | {name} | {len(pairs)} | " + " | ".join(gains) + " |")
    head = f"| more than {RANDOM} | length | trainings | " + " | ".join(HEADS) + " |"
    return ["", head, "|---" * (3 + len(HEADS)) + "|", *lines] if lines else []


def interval(values: Sequence[float]) -> str:
    """Return the mean of shares in per cent, with half of its 95 % interval by Student's t."""
    mean = 100 * float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.1f}"
    half = t.ppf(0.975, len(values) - 1) * 100 * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f}"


def _name(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["arm"], row["length"], row["seed"]
