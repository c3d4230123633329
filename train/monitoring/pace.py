"""Decides when a run can afford its next score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SHARE = 0.02
"""Of a run's time that scores take at most, where the recipe leaves their interval open."""


@dataclass
class Pace:
    """What of a run's time, interruptions left out, went into scores and into training."""

    trained: float = 0.0
    """Seconds of steps, waiting for data included."""
    scored: float = 0.0
    last: float | None = None
    """Seconds of the last score."""

    def train(self, seconds: float) -> None:
        """Count the time of some steps."""
        self.trained += seconds

    def score(self, seconds: float) -> None:
        """Count the time of a score."""
        self.scored += seconds
        self.last = seconds

    @property
    def affords(self) -> bool:
        """Whether with one more score like the last, and that at the end, at most `SHARE` of the
        time has gone into scores. What a score takes is not known before the first one.
        """
        if self.last is None:
            return True
        scored = self.scored + 2 * self.last
        return scored <= SHARE * (self.trained + scored)

    @property
    def share(self) -> float:
        """The scores' share of the time; 0 before anything took any."""
        return self.scored / (self.scored + self.trained) if self.scored else 0.0


def pace_of(lines: Iterable[Mapping[str, Any]]) -> Pace:
    """Return what the lines of a run's metrics, in their order, say of its time."""
    pace, before = Pace(), -1
    for line in lines:
        if "step_seconds" in line:
            pace.train((line["step"] - before) * line["step_seconds"])
            before = line["step"]
        if "knn_seconds" in line:
            pace.score(line["knn_seconds"])
    return pace
