"""The scores of several models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from train.evaluation.scores import Score
from train.evaluation.tasks import TASKS


@dataclass(frozen=True)
class Row:
    """A model of the table, in the order in which they were asked for."""

    model: str
    fingerprint: str
    needs: Sequence[str]
    """What it (or each part of a joined one) needs of its input, in a line."""
    scores: Sequence[Score]
    failures: Mapping[str, str] = field(default_factory=dict)
    """Why a task gave no score."""


@dataclass(frozen=True)
class Table:
    """What an evaluation has found."""

    tasks: Sequence[str]
    rows: Sequence[Row]
    places: Mapping[str, str | None] = field(default_factory=dict)
    """Where the data are: the options train, test and data."""
    notes: Sequence[str] = ()
    """On the data."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def figures(self) -> list[dict[str, Any]]:
        """Return a record for each model, task, metric and setting, in the table's order."""
        return [
            {
                **asdict(score),
                **{place: self._read(place, score.task) for place in ("train", "test", "data")},
                "model": row.model,
                "fingerprint": row.fingerprint,
            }
            for row in self.rows
            for score in row.scores
        ]

    def failures(self) -> list[str]:
        """Return why tasks gave no score, each with its model."""
        return [f"{row.model}, {t}: {why}" for row in self.rows for t, why in row.failures.items()]

    def _read(self, place: str, task: str) -> str | None:
        return self.places.get(place) if place in TASKS[task] else None
