"""Writes what a run measures: metrics.jsonl, one JSON object a line, and the numbers as curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shared.storage.files import sync
from train.monitoring.curves import open_curves
from train.monitoring.settings import LogSettings

TIMINGS = frozenset(
    {
        *("images_per_second", "tokens_per_second", "tflops", "peak_share", "step_seconds"),
        *("data_wait", "knn_seconds", "memory_gib"),
    }
)
"""The only metrics that may differ between two runs of the same steps on the same processor type."""

METRICS = "metrics.jsonl"

Value = float | int | bool | str | list[str] | None


class MetricsWriter:
    """Appends to OUT/metrics.jsonl and to what draws curves; one process of a run has one.

    A run that goes on at `start_step` cuts off what was written of that step and later ones, and
    a last line that a kill has torn: but for `TIMINGS` the file becomes that of a run that was
    never interrupted, and so do TensorBoard's curves.
    """

    def __init__(
        self,
        out: Path,
        settings: LogSettings,
        start_step: int,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / METRICS
        if path.exists():
            _cut(path, start_step)
        self._lines = path.open("a", encoding="utf-8")
        self._curves = open_curves(out, settings, start_step, recipe or {})

    def write(self, step: int, metrics: Mapping[str, Value]) -> None:
        """Append one line, `{"step": step, ...}`, and its numbers as points of the curves.

        JSON has no word for a number that is not finite: such a metric is null, and `non_finite`
        says what it was ("nan", "inf", "-inf"). The file, and TensorBoard's, is with the system
        when this returns, so that only a crash of the whole machine can lose what was written.
        """
        values: dict[str, Value] = {"step": step, **metrics}
        odd = {
            name: str(float(value))
            for name, value in metrics.items()
            if isinstance(value, float) and not math.isfinite(value)
        }
        if odd:
            values |= dict.fromkeys(odd, None) | {"non_finite": odd}
        self._lines.write(json.dumps(values, allow_nan=False) + "\n")
        self._lines.flush()
        numbers = {name: v for name, v in metrics.items() if isinstance(v, int | float)}
        for curves in self._curves:
            curves.add(step, numbers)

    def close(self) -> None:
        """Close the file and the curves."""
        self._lines.close()
        for curves in self._curves:
            curves.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a metrics file, `Value`s by name; one that is torn or not of ours is left
    out."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if line.endswith("\n") and isinstance(values, dict) and type(values.get("step")) is int:
                yield values


def _cut(path: Path, start_step: int) -> None:
    """Keep only the whole lines before `start_step`; a kill meanwhile leaves the old file."""
    beside = path.with_name(f".{path.name}.cut")
    with beside.open("w", encoding="utf-8") as kept:
        for values in read_metrics(path):
            if values["step"] < start_step:
                kept.write(json.dumps(values, allow_nan=False) + "\n")
    sync(beside)
    beside.rename(path)
    sync(path.parent)
