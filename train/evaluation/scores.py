"""What a task of an evaluation returns: one number, and what it is a number of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Score:
    """One figure of one model in one task."""

    task: str
    metric: str
    value: float
    """Shares are fractions, not percent; NaN where there is none."""
    setting: str = ""
    """What the metric was taken at (`k=20`), or what won on held-out data (`lr 0.1, cls4`)."""
    higher_is_better: bool = True
    note: str = ""
    """What a reader of the figure must know: sentences without a full stop, `; ` between them."""

    @property
    def sentences(self) -> list[str]:
        """Those of the note."""
        return self.note.split("; ") if self.note else []

    def with_sentences(self, more: Iterable[str]) -> Score:
        """Return the score with sentences behind those of its note."""
        return replace(self, note="; ".join([*self.sentences, *more]))


def share_scored(scored: int, given: int, what: str = "images") -> str:
    """Return a sentence where fewer of `what` were scored than given, else an empty string."""
    return f"{scored:,} of {given:,} {what} are scored" if scored < given else ""
