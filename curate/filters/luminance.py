"""How much the luminance of each image varies, by which drawn pictures are told from photographs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curate.filters.look import Look
from curate.filters.picture import entropy, reduce_to

SIDE = 64
"""The longer side in pixels that a picture is reduced to; no more than embedders for copies read."""
BITS = "luminance_bits"


def take(image: Image.Image) -> dict[str, Any]:
    """Return the entropy of the luminance's 256 values, in bits, 0 to 8."""
    return {BITS: entropy(np.asarray(reduce_to(image, SIDE).convert("L"), np.uint8))}


LOOK = Look("luminance", 1, SIDE, pa.schema([(BITS, pa.float32())]), take, reported=False)
