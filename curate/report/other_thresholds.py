"""What another threshold would keep and drop: the counts behind the sliders of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from curate.report.tables import rows

STEP = 0.005


@dataclass(frozen=True)
class Counts:
    """Counts at several thresholds; `at` is the place of the run's own among them."""

    setting: str
    """What sets the threshold, as `--set` says it."""
    thresholds: list[float]
    columns: dict[str, list[int]]
    at: int

    def row(self, place: int) -> dict[str, int]:
        """Return the counts at one of them."""
        return {name: values[place] for name, values in self.columns.items()}

    def told(self) -> dict[str, Any]:
        """Return all of it, JSON-able."""
        return {
            "setting": self.setting,
            "thresholds": self.thresholds,
            "columns": self.columns,
            "at": self.at,
        }

    def some(self, most: int = 25) -> list[int]:
        """Return places of a few thresholds for a table, the run's own among them."""
        step = max(1, -(-len(self.thresholds) // most))
        return sorted({*range(0, len(self.thresholds), step), self.at})


def relevance_counts(
    tables: duckdb.DuckDBPyConnection, threshold: float | None, setting: str
) -> Counts | None:
    """Count the images whose nearest seed image reaches each of several thresholds.

    `reach` all of them, `stay` those that the run kept, `enter` those that it called irrelevant. Budgets
    come behind. None where the run has no such threshold, or no image was compared.
    """
    [ends] = rows(
        tables, "SELECT min(seed_similarity) AS low, max(seed_similarity) AS high FROM images"
    )
    if threshold is None or ends["low"] is None:
        return None
    first, last = int(np.floor(ends["low"] / STEP)), int(np.ceil(ends["high"] / STEP))
    steps = {round(step * STEP, 3) for step in range(first, last + 1)}
    values = sorted({threshold, *(x for x in steps if np.float32(x) != np.float32(threshold))})
    counted = rows(
        tables,
        """
        WITH tried AS (SELECT unnest(?::FLOAT[]) AS threshold),
        last AS (
            SELECT threshold, decision FROM images ASOF JOIN tried ON seed_similarity >= threshold
        )
        SELECT threshold, count(decision) AS reach, count(*) FILTER (decision = 'kept') AS stay,
            count(*) FILTER (decision = 'irrelevant') AS enter
        FROM tried LEFT JOIN last USING (threshold) GROUP BY ALL ORDER BY threshold
        """,
        [values],
    )
    # Of each image the last threshold that it reaches was found: it reaches all before it.
    columns = {
        name: np.cumsum([row[name] for row in counted][::-1])[::-1].tolist()
        for name in ("reach", "stay", "enter")
    }
    return Counts(setting, values, columns, values.index(threshold))


def copy_counts(tables: duckdb.DuckDBPyConnection, threshold: float | None) -> Counts | None:
    """Return what `regrouped.parquet` says of each threshold; None where it says nothing."""
    found = rows(tables, "FROM regrouped ORDER BY threshold")
    values = [row["threshold"] for row in found]
    if threshold is None or threshold not in values:
        return None
    names = ["copies", "standing", "groups", "kept", "released", "of_kept", "undecided"]
    if all(row.get("would_keep") is not None for row in found):
        names.append("would_keep")
    columns = {name: [row[name] for row in found] for name in names}
    return Counts("dedup.threshold", values, columns, values.index(threshold))
