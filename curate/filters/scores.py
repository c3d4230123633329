"""Filters by a score column of the crawl's own table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, model_validator

from curate.filters.decisions import Check


class FilterSettings(BaseModel):
    """A score column of the crawl's own table, and the range that is safe (inclusive)."""

    model_config = ConfigDict(extra="forbid")

    column: str
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> FilterSettings:
        if self.min is None and self.max is None:
            raise ValueError("a filter needs min, max or both")
        return self


def score_column(column: str) -> str:
    """Return the name that a crawl's score column has in the scores."""
    return f"score:{column}"


def unsafe(scores: pa.Table, filters: Sequence[FilterSettings]) -> Iterator[Check]:
    """Yield a check for each filter.

    An image without a value in a filter's column fails the filter: nothing says that it is safe.
    """
    for entry in filters:
        values = scores[score_column(entry.column)].fill_null(np.nan).to_numpy()
        failing = np.isnan(values)
        if entry.min is not None:
            failing |= values < entry.min
        if entry.max is not None:
            failing |= values > entry.max

        def reason(
            row: int,
            entry: FilterSettings = entry,
            values: Float64[np.ndarray, " n"] = values,
        ) -> str:
            score = values[row]
            if np.isnan(score):
                return f"{entry.column} has no value"
            if entry.max is not None and score > entry.max:
                return f"{entry.column} {score:g} is above {entry.max:g}"
            return f"{entry.column} {score:g} is below {entry.min:g}"

        yield Check("unsafe", failing, reason)
