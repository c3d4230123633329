"""Filters by a score of each image: a column of the crawl's own tables, or what a model says of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, model_validator

from curate.filters.classifier import ClassifierSettings
from curate.filters.decisions import Check
from curate.filters.head import Head, HeadSettings
from curate.filters.prompts import PromptSettings
from shared.embedders.settings import EmbedderSettings


@runtime_checkable
class Source(Protocol):
    """What makes the scores of a filter of stored vectors."""

    @property
    def about(self) -> Any:
        """What decides the scores beside the embedder, JSON-able."""
        ...

    def compile(self, embedder: EmbedderSettings, threads: int) -> Head:
        """Return it as a head. Raises LvdError where it does not fit the embedder."""
        ...


class FilterSettings(BaseModel):
    """A score of each image by one of `column`, `head`, `prompts` and `classifier`, and the range
    that passes (inclusive)."""

    model_config = ConfigDict(extra="forbid")

    name: str = ""
    """What reasons and reports call it; a column's own where there is none."""
    column: str | None = None
    """Of the crawl's own table or JSON members."""
    head: HeadSettings | None = None
    """A linear layer on stored vectors."""
    prompts: PromptSettings | None = None
    """Captions, by an open_clip embedder's stored vectors."""
    classifier: ClassifierSettings | None = None
    """A model that sees the picture."""
    min: float | None = None
    max: float | None = None
    decision: Literal["unsafe", "low_quality"] = "unsafe"
    """What becomes of an image outside the range."""

    @model_validator(mode="after")
    def _is_whole(self) -> FilterSettings:
        given = [each for each in (self.column, self.asks) if each is not None]
        if len(given) != 1 or len(self._models) > 1:
            raise ValueError("a filter needs one of column, head, prompts and classifier")
        if self.column is None and not self.name:
            raise ValueError("a filter by a model needs a name, for reasons and reports")
        if self.min is None and self.max is None:
            raise ValueError("a filter needs min, max or both")
        self.name = self.name or str(self.column)
        return self

    @property
    def _models(self) -> list[HeadSettings | PromptSettings | ClassifierSettings]:
        every = (self.head, self.prompts, self.classifier)
        return [each for each in every if each is not None]

    @property
    def asks(self) -> HeadSettings | PromptSettings | ClassifierSettings | None:
        """What it asks of an embedder; None of one by a column."""
        return next(iter(self._models), None)

    @property
    def score(self) -> str:
        """The column of the scores that it looks at."""
        return score_column(self.column or self.name)

    @property
    def rule(self) -> list[Any]:
        """What decides about an image of a known score, JSON-able."""
        return [self.name, self.score, self.min, self.max, self.decision]


def score_column(name: str) -> str:
    """Return the name that a crawl's column, or a filter's own score, has in the scores."""
    return f"score:{name}"


def scored(
    scores: pa.Table | None,
    filters: Sequence[FilterSettings],
    decision: Literal["unsafe", "low_quality"],
) -> Iterator[Check]:
    """Yield a check for each filter of that decision.

    An image without a value fails the filter: nothing says that it is fine.
    """
    for entry in filters:
        if scores is None or entry.decision != decision:
            continue
        values = scores[entry.score].fill_null(np.nan).to_numpy()
        failing = np.isnan(values)
        if entry.min is not None:
            failing |= values < entry.min
        if entry.max is not None:
            failing |= values > entry.max

        def reason(
            row: int,
            entry: FilterSettings = entry,
            values: Float[np.ndarray, " n"] = values,
        ) -> str:
            score = values[row]
            if np.isnan(score):
                return f"{entry.name} has no value"
            if entry.max is not None and score > entry.max:
                return f"{entry.name} {score:g} is above {entry.max:g}"
            return f"{entry.name} {score:g} is below {entry.min:g}"

        yield Check(decision, failing, reason)
