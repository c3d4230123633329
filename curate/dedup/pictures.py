"""The pictures of a pair of images, as a look at their pixels wants them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from curate.catalogue.originals import Originals
from curate.pixels import align
from shared.pictures.images import ImageError, decode

_REDUCE_TO = 2 * align.SIDE


def decode_pair(
    originals: Originals, pair: Sequence[int], max_pixels: int
) -> tuple[Image.Image, Image.Image] | None:
    """Return the RGB pictures of two image numbers; None where one cannot be decoded any more.

    Raises what `Originals.read` raises.
    """
    one, other = (decode_for_look(originals.read(number), max_pixels) for number in pair)
    return None if one is None or other is None else (one, other)


def decode_for_look(data: bytes, max_pixels: int) -> Image.Image | None:
    """Return the RGB picture of the bytes of an image; None where it cannot be decoded."""
    try:
        return decode(data, max_pixels=max_pixels, reduce_to=_REDUCE_TO)
    except ImageError:
        return None
