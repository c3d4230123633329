"""A small grey picture of each image, of which hashes of the pool are made (`dedup.hashes`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image

from curate.filters.look import Look

SIDE = 16
"""Its sides in pixels, whatever the picture's aspect."""
READ_SIDE = 256
"""A JPEG may be decoded smaller, to this shorter side in pixels."""
LEAST_CONTRAST = 5.0
"""Standard deviation of the luminance, of 255 steps: flatter ones have hashes that say nothing."""


def reduce(image: Image.Image) -> UInt8[np.ndarray, "16 16"] | None:
    """Return the luminance of a picture in 16 x 16 means; None where it is too flat."""
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, np.uint8)
    return grey if grey.std(dtype=np.float64) >= LEAST_CONTRAST else None


def take(image: Image.Image) -> dict[str, Any]:
    """Return the bytes of the grey picture, row by row."""
    grey = reduce(image)
    return {"grey": None if grey is None else grey.tobytes()}


LOOK = Look("grey", 1, READ_SIDE, pa.schema([("grey", pa.binary(SIDE**2))]), take, reported=False)
