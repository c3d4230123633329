"""Reads the metrics of a run in one pass, in memory that does not grow with the run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any

MOST_POINTS = 400
"""Points of a curve; where a run has more lines, each is the mean of as many lines."""


@dataclass
class Curve:
    """A metric over the steps; numbers that are not finite are left out, and counted."""

    first: float = nan
    last: float = nan
    low: tuple[float, int] = inf, 0
    """The lowest value, and the step that had it first."""
    high: tuple[float, int] = -inf, 0
    lost: int = 0
    lines_a_point: int = 1
    _sums: list[tuple[int, int, float]] = field(default_factory=list)
    """Of each point: its values, the sum of their steps, their sum."""

    def add(self, step: int, value: float | None) -> None:
        """Take a value, None for one that was not finite."""
        if value is None:
            self.lost += 1
            return
        if not self._sums:
            self.first = value
        self.last = value
        if value < self.low[0]:
            self.low = value, step
        if value > self.high[0]:
            self.high = value, step
        if self._sums and self._sums[-1][0] < self.lines_a_point:
            count, steps, total = self._sums.pop()
            self._sums.append((count + 1, steps + step, total + value))
            return
        if len(self._sums) == 2 * MOST_POINTS:
            pairs = zip(self._sums[::2], self._sums[1::2], strict=True)
            self._sums = [(a + d, b + e, c + f) for (a, b, c), (d, e, f) in pairs]
            self.lines_a_point *= 2
        self._sums.append((1, step, value))

    @property
    def points(self) -> list[tuple[float, float]]:
        """The curve as (step, value), from the first step on."""
        return [(steps / count, total / count) for count, steps, total in self._sums]


@dataclass
class SignSpan:
    """When a sign of collapse was seen."""

    first: int
    last: int
    lines: int = 1


@dataclass
class History:
    """What metrics.jsonl says of a run."""

    curves: dict[str, Curve] = field(default_factory=dict)
    signs: dict[str, SignSpan] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    """The last line of a step."""

    def __bool__(self) -> bool:
        return bool(self.curves)


def read_history(lines: Iterable[dict[str, Any]]) -> History:
    """Return what the lines of a metrics file say; falsy where there is nothing in them."""
    history = History()
    for line in lines:
        step = line["step"]
        if "loss" in line:
            history.last = line
        odd = line.get("non_finite") or {}
        for name, value in line.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if (number and name != "step") or name in odd:
                history.curves.setdefault(name, Curve()).add(step, value if number else None)
        for sign in line.get("collapse") or ():
            if span := history.signs.get(sign):
                span.last, span.lines = step, span.lines + 1
            else:
                history.signs[sign] = SignSpan(step, step)
    return history
