"""What can become of an image, and what a filter says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

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


@dataclass(frozen=True)
class Check:
    """One thing that can be wrong with images, and of which of them it is."""

    decision: str
    failing: Bool[np.ndarray, " n"]
    reason: Callable[[int], str]
    """Says of the image in a row what is wrong with it."""
