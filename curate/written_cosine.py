"""Writes cosines so that what is told holds by the digits: a similarity down, a threshold under it up."""

from __future__ import annotations

import math

_STEP = 10_000
_ROUNDING = 0.001
"""Of a step: how far a float32 that stands for a number of four digits may be from it."""


def rounded_down(cosine: float) -> str:
    """Return a cosine with four digits, rounded down: what is below a threshold is not shown as on it."""
    return f"{math.floor(cosine * _STEP + _ROUNDING) / _STEP:.4f}"


def rounded_up(threshold: float) -> str:
    """Return a threshold with four digits, rounded up: what is below it by 2e-7 or more is less, rounded down."""
    return f"{math.ceil(threshold * _STEP - _ROUNDING) / _STEP:.4f}"
