"""All filters of quality, in the order in which they are asked."""

from __future__ import annotations

from curate.filters import facts, picture
from curate.filters.filter import Filter

FILTERS: tuple[Filter, ...] = (
    facts.MIN_SIDE,
    facts.MAX_ASPECT,
    facts.MIN_PIXELS,
    facts.MIN_BYTES_PER_PIXEL,
    facts.ODD_SIZE,
    facts.FORMATS,
    facts.DOMAINS,
    facts.DENIED_DOMAINS,
    facts.MIN_CONTRAST,
    picture.MIN_BRIGHTNESS,
    picture.MAX_BRIGHTNESS,
    picture.MIN_ENTROPY,
    picture.MIN_SHARPNESS,
    picture.MIN_COLOUR,
)
"""A new one is its object, its setting beside it, and its line here."""
