"""What the facts of an image say of it before any other image is looked at."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

DECISIONS = (
    "corrupt",
    "unsafe",
    "low_quality",
    "holdout",
    "duplicate",
    "irrelevant",
    "over_budget",
    "kept",
)
"""What can become of an image; the first that applies."""

CODE = {name: code for code, name in enumerate(DECISIONS)}
OPEN = -1
"""The code of an image that nothing has been decided about."""


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


class QualitySettings(BaseModel):
    """Below these an image is `low_quality`; bounds are inclusive."""

    model_config = ConfigDict(extra="forbid")

    min_side: int = Field(32, ge=1)
    """Shorter side in pixels."""
    max_aspect: float = Field(8.0, ge=1)
    """Longer side over shorter side."""
    min_contrast: float = Field(2.0, ge=0, le=127)
    """Standard deviation of the luminance, of 255: below it the image is near-blank."""


def judge(
    facts: pa.Table, quality: QualitySettings, filters: list[FilterSettings]
) -> tuple[np.ndarray, list[str]]:
    """Return the int8 decision codes (`OPEN` where none applies) and the reasons of a facts table.

    An image without a value in a filter's column fails the filter: nothing says that it is safe.
    """
    codes = np.full(len(facts), OPEN, np.int8)
    reasons = [""] * len(facts)
    columns = {name: facts[name].to_pylist() for name in _read(filters)}
    for row in range(len(facts)):
        fact = {name: values[row] for name, values in columns.items()}
        for decision, reason in _judgements(fact, quality, filters):
            if reason:
                codes[row], reasons[row] = CODE[decision], reason
                break
    return codes, reasons


def _read(filters: list[FilterSettings]) -> list[str]:
    scores = [score_column(entry.column) for entry in filters]
    return ["problem", "width", "height", "contrast", "vector", *dict.fromkeys(scores)]


def score_column(column: str) -> str:
    """Return the name that a crawl's score column has in the facts."""
    return f"score:{column}"


def _judgements(fact: dict, quality: QualitySettings, filters: list[FilterSettings]):
    yield "corrupt", fact["problem"]
    for entry in filters:
        yield "unsafe", _unsafe(fact[score_column(entry.column)], entry)
    short, long = sorted((fact["width"], fact["height"]))
    if short < quality.min_side:
        yield "low_quality", f"shorter side {short} px is below {quality.min_side}"
    if long > quality.max_aspect * short:
        yield "low_quality", f"aspect ratio {long / short:.1f} is above {quality.max_aspect:g}"
    if fact["contrast"] < quality.min_contrast:
        said = f"contrast {fact['contrast']:.1f} is below {quality.min_contrast:g}"
        yield "low_quality", f"near-blank: {said}"
    if fact["vector"] < 0:
        yield "low_quality", "the embedder gave no finite, non-zero vector"


def _unsafe(score: float | None, entry: FilterSettings) -> str:
    if score is None or np.isnan(score):
        return f"{entry.column} has no value"
    if entry.max is not None and score > entry.max:
        return f"{entry.column} {score:g} is above {entry.max:g}"
    if entry.min is not None and score < entry.min:
        return f"{entry.column} {score:g} is below {entry.min:g}"
    return ""
