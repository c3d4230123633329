"""Filters by the picture of an image: dark, bright, of little information, blurry, grey.

A picture is measured reduced to `SIDE`, so that a measure means the same for all of them, and a
picture that is blurred by less than that reduction is not blurry. The measures are cleanvision's,
but that blur is told by the Laplacian and entropy is that of the luminance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, UInt8
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from curate.filters.filter import Filter, Finding
from curate.filters.look import Look

SIDE = 256
"""The longer side in pixels that a picture is reduced to; a smaller one stays as it is."""
MEASURES = pa.schema(
    [
        ("brightness_p99", pa.float32()),
        ("brightness_p5", pa.float32()),
        ("entropy", pa.float32()),
        ("sharpness", pa.float32()),
        ("colour", pa.float32()),
    ]
)
"""Null where there is no picture. `brightness_p99` and `brightness_p5`: percentiles of the pixels'
perceived brightness, from 0 (black) to 1 (white). `entropy`: of the luminance's 256 values, in bits,
0 to 8. `sharpness`: the variance of the luminance's Laplacian, from 0 (flat) to 1,040,400 (luminance
has 255 steps); 0 where a side has less than 3 pixels. `colour`: the 99th percentile of how far a
pixel's red, green and blue lie apart, 0 (grey) to 255."""


class PictureSettings(BaseModel):
    """An image that one of these excludes is `low_quality`; bounds are inclusive, None is off."""

    model_config = ConfigDict(extra="forbid")

    min_brightness: float | None = Field(None, ge=0, le=1)
    """Of the 99th percentile of brightness: below it the image is dark (cleanvision: 0.32)."""
    max_brightness: float | None = Field(None, ge=0, le=1)
    """Of the 5th percentile of brightness: above it the image is bright (cleanvision: 0.95)."""
    min_entropy: float | None = Field(None, ge=0, le=8)
    """Bits: below it the image holds little information (cleanvision: 3, of all colours)."""
    min_sharpness: float | None = Field(None, ge=0)
    """Variance of the Laplacian: below it the image is blurry."""
    min_colour: float | None = Field(None, ge=0, le=255)
    """Of 255: below it the image is grey (cleanvision takes only what has no colour at all: 1)."""


def measure(image: Image.Image) -> dict[str, Any]:
    """Return the `MEASURES` of an RGB picture; a picture gives the same ones on any thread."""
    small = reduce_to(image, SIDE)
    pixels = np.asarray(small, np.uint8)
    brightness = _brightness(pixels)
    dark_end, bright_end = np.percentile(brightness, [5, 99])
    luminance = np.asarray(small.convert("L"), np.uint8)
    return {
        "brightness_p99": float(bright_end),
        "brightness_p5": float(dark_end),
        "entropy": entropy(luminance),
        "sharpness": _sharpness(luminance),
        "colour": float(np.percentile(np.ptp(pixels, axis=2), 99)),
    }


def reduce_to(image: Image.Image, longest: int) -> Image.Image:
    """Return a picture whose longer side has at most so many pixels, each a mean."""
    long = max(image.size)
    if long <= longest:
        return image
    width, height = (max(1, round(side * longest / long)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _brightness(pixels: UInt8[np.ndarray, "h w 3"]) -> Float64[np.ndarray, "h w"]:
    """Return the perceived brightness of pixels, 0 to 1: the HSP model's, as in cleanvision."""
    red, green, blue = np.moveaxis(pixels.astype(np.float64) ** 2, 2, 0)
    brightness: Float64[np.ndarray, "h w"] = np.sqrt(0.241 * red + 0.691 * green + 0.068 * blue)
    return brightness / 255


def entropy(luminance: UInt8[np.ndarray, "h w"]) -> float:
    """Return the entropy of 256 values, in bits."""
    counts = np.bincount(luminance.reshape(-1), minlength=256)
    shares = counts[counts > 0] / luminance.size
    return float(max(0.0, -(shares * np.log2(shares)).sum()))


def _sharpness(luminance: UInt8[np.ndarray, "h w"]) -> float:
    if min(luminance.shape) < 3:
        return 0.0
    grey = luminance.astype(np.int64)
    across = grey[1:-1, :-2] + grey[1:-1, 2:]
    along = grey[:-2, 1:-1] + grey[2:, 1:-1]
    return float((across + along - 4 * grey[1:-1, 1:-1]).var(dtype=np.float64))


def _bounded(setting: str, column: str, what: str, *, above: bool = False) -> Filter:
    """Return the filter for a measure that must not be below the setting, or not above it.

    An image without the measure fails: nothing says that its picture is fine.
    """

    def find(measures: pa.Table, bound: float) -> Finding:
        values = measures[column].fill_null(np.nan).to_numpy()
        limit = np.float32(bound)
        side = "above" if above else "below"

        def reason(row: int) -> str:
            if np.isnan(values[row]):
                return f"{column} was not measured"
            return f"{what} {values[row]:.4g} is {side} {bound:g}"

        return ~(values <= limit if above else values >= limit), reason

    return Filter(setting, (column,), find)


LOOK = Look("measures", 2, SIDE, MEASURES, measure)
MIN_BRIGHTNESS = _bounded("min_brightness", "brightness_p99", "dark: brightness (99th percentile)")
MAX_BRIGHTNESS = _bounded(
    "max_brightness", "brightness_p5", "bright: brightness (5th percentile)", above=True
)
MIN_ENTROPY = _bounded("min_entropy", "entropy", "little information: entropy in bits")
MIN_SHARPNESS = _bounded("min_sharpness", "sharpness", "blurry: sharpness")
MIN_COLOUR = _bounded("min_colour", "colour", "grey: colour")
