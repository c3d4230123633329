"""Filters by the facts of an image: broken, too small, too long, near-blank, without a vector."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field

from curate.filters.decisions import Check


class QualitySettings(BaseModel):
    """Below these an image is `low_quality`; bounds are inclusive."""

    model_config = ConfigDict(extra="forbid")

    min_side: int = Field(32, ge=1)
    """Shorter side in pixels."""
    max_aspect: float = Field(8.0, ge=1)
    """Longer side over shorter side."""
    min_contrast: float = Field(2.0, ge=0, le=127)
    """Standard deviation of the luminance, of 255: below it the image is near-blank."""


COLUMNS = ("problem", "width", "height", "contrast")


def corrupt(facts: pa.Table) -> Check:
    """Return the check for images that could not be read or decoded."""
    problems = facts["problem"]
    failing = np.array([bool(text) for text in problems.to_pylist()], bool)
    return Check("corrupt", failing, lambda row: problems[row].as_py())


def quality(
    facts: pa.Table, valid: Bool[np.ndarray, " n"], settings: QualitySettings
) -> Iterator[Check]:
    """Yield the checks of size, shape and contrast, and the one for a vector that is not `valid`."""
    width, height = (facts[side].fill_null(1).to_numpy() for side in ("width", "height"))
    short, long = np.minimum(width, height), np.maximum(width, height)
    contrast = facts["contrast"].to_numpy()
    yield Check(
        "low_quality",
        short < settings.min_side,
        lambda row: f"shorter side {short[row]} px is below {settings.min_side}",
    )
    yield Check(
        "low_quality",
        long > settings.max_aspect * short,
        lambda row: f"aspect ratio {long[row] / short[row]:.1f} is above {settings.max_aspect:g}",
    )
    yield Check(
        "low_quality",
        contrast < np.float32(settings.min_contrast),
        lambda row: f"near-blank: contrast {contrast[row]:.1f} is below {settings.min_contrast:g}",
    )
    yield Check("low_quality", ~valid, lambda row: "the embedder gave no finite, non-zero vector")
