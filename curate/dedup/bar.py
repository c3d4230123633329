"""From which cosine two images are copies: two drawn ones from a higher one on, if need be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer

from curate.catalogue.collection import Collection
from curate.catalogue.drawn import are_drawn
from curate.neighbours.search import Searchable, cosines, neighbours

VERSION = 1
DRAWN = "drawn.npy"

Rows = Integer[np.ndarray, " _"]


@dataclass(frozen=True)
class Bar:
    """From which cosine two images are copies, inclusive."""

    threshold: float
    of_drawn: float
    """Of two drawn ones, not below `threshold`."""
    marked: Path | None = None
    """Where `mark_drawn` wrote which are drawn; None where one cosine is for all."""

    def is_drawn(self) -> Bool[np.ndarray, " n"] | None:
        """Return of every image number whether it is drawn, mapped; None where that does not matter."""
        return None if self.marked is None else np.load(self.marked / DRAWN, mmap_mode="r")


def mark_drawn(collection: Collection, *, out: Path) -> dict[str, int]:
    """Write bool `drawn.npy` by image number."""
    drawn = np.zeros(len(collection), bool)
    for start, stop in collection.blocks():
        drawn[start:stop] = are_drawn(collection, np.arange(start, stop))
    np.save(out / DRAWN, drawn)
    return {"drawn": int(drawn.sum())}


def copies(
    queries: Searchable, rows: Rows, base: Searchable, bar: Bar
) -> Iterator[tuple[Rows, Rows]]:
    """Yield rows of queries and of the base that are copies, as `neighbours` does at one threshold."""
    drawn = bar.is_drawn()
    for row, found in neighbours(queries, rows, base, bar.threshold):
        if drawn is not None:
            doubtful = np.flatnonzero(drawn[queries.numbers[row]] & drawn[base.numbers[found]])
            if len(doubtful):
                short = cosines(queries, row[doubtful], base, found[doubtful])
                stay = np.ones(len(row), bool)
                stay[doubtful[short < np.float32(bar.of_drawn)]] = False
                row, found = row[stay], found[stay]
        yield row, found
