"""PDQ, the perceptual hash of Meta's ThreatExchange: 256 bits, of which a copy changes few.

By the package `pdqhash` (extra `pdq`), which compiles Meta's own C++.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt16, UInt64
from PIL import Image

from curate.filters.look import Look
from shared.errors import LvdError

SIDE = 512
"""A JPEG may be decoded smaller, to this shorter side in pixels."""
PIXELS = 1 << 20
"""Any picture is reduced to so many pixels or up to four times as many, which bounds the memory. The
hash then differs by a few bits from that of the picture as it is."""
LEAST_QUALITY = 50
"""Of 100: hashes of flatter pictures, which say little, are not to be compared (Meta's advice)."""
DISTANCE = 31
"""Bits of 256 that may differ between copies (Meta's advice)."""
PAIRS = 4_000_000
"""Pairs of hashes that are compared at a time."""


def take(image: Image.Image) -> dict[str, Any]:
    """Return the hash of an RGB picture in hex, None where it is of too little quality."""
    pdqhash = _pdqhash()
    factor = max(1, math.isqrt(image.width * image.height // PIXELS))
    bits, quality = pdqhash.compute(np.asarray(image.reduce(factor), np.uint8))
    digest = np.packbits(np.asarray(bits, np.uint8)).tobytes().hex()
    return {"pdq": digest if quality >= LEAST_QUALITY else None}


def require_pdqhash() -> None:
    """Raise LvdError where pictures cannot be hashed here."""
    _pdqhash()


def _pdqhash() -> Any:
    try:
        import pdqhash
    except ImportError:
        raise LvdError(
            "lists of kind pdq need the package pdqhash: "
            "uv pip install -c constraints.txt -e '.[pdq]' (it compiles C++), or use another kind"
        ) from None
    return pdqhash


def fewest_bits(
    asked: UInt64[np.ndarray, "m 4"], listed: UInt64[np.ndarray, "n 4"]
) -> UInt16[np.ndarray, " m"]:
    """Return for each hash how many bits differ from the nearest one listed; 256 if there is none.

    A hash is four words, whose order does not matter. All pairs are compared, which takes a second
    for some tens of millions of them.
    """
    fewest = np.full(len(asked), 256, np.uint16)
    step = max(1, PAIRS // max(1, len(asked)))
    for at in range(0, len(listed), step):
        some = listed[at : at + step]
        bits = np.zeros((len(asked), len(some)), np.uint16)
        for word in range(4):
            bits += np.bitwise_count(asked[:, word, None] ^ some[None, :, word])
        fewest = np.minimum(fewest, bits.min(1))
    return fewest


LOOK = Look("pdq", 1, SIDE, pa.schema([("pdq", pa.string())]), take)
