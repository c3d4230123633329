"""pHash, the perceptual hash of 64 bits of a picture's low frequencies.

By the package `imagehash` (extra `phash`).
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from PIL import Image

from curate.filters import grey
from curate.filters.look import Look
from shared.errors import LvdError


def take(image: Image.Image) -> dict[str, Any]:
    """Return the hash of an RGB picture in hex, None where it is too flat for one."""
    imagehash = _imagehash()
    return {"phash": None if grey.reduce(image) is None else str(imagehash.phash(image))}


def require_imagehash() -> None:
    """Raise LvdError where pictures cannot be hashed here."""
    _imagehash()


def _imagehash() -> Any:
    try:
        import imagehash
    except ImportError:
        raise LvdError(
            "dedup.hash=phash needs the package imagehash: "
            "uv pip install -c constraints.txt -e '.[phash]', or set dedup.hash=pca"
        ) from None
    return imagehash


LOOK = Look("phash", 1, grey.READ_SIDE, pa.schema([("phash", pa.string())]), take)
