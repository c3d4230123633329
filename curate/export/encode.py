"""The bytes that an image goes out as: its own, or those of its picture, resized or in another format."""

from __future__ import annotations

import io
import math
from typing import Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.pictures.images import Header, decode, read_header

EXTENSIONS = {"jpeg": "jpg"}
"""Of the formats whose extension is not their name."""
LONGEST_SIDE = {"jpeg": 65_500, "webp": 16_383}
"""Pixels of the longest side that a format, or Pillow's writer of it, can have."""


class ResizeSettings(BaseModel):
    """To which size pictures are brought."""

    model_config = ConfigDict(extra="forbid")

    smaller_side: int = Field(ge=1, le=LONGEST_SIDE["webp"])
    """Pixels of the shorter side; the other one follows."""
    only_larger: bool = True
    """Leave pictures as they are that are not larger."""


class PictureSettings(BaseModel):
    """How the pictures of kept images are written."""

    model_config = ConfigDict(extra="forbid")

    encode: Literal["auto", "never", "jpeg", "webp"] = "auto"
    """auto: what is not a JPEG becomes one, and a JPEG keeps its bytes unless it is resized. never:
    all bytes are kept. jpeg, webp: every picture is encoded anew, so that all have the quality, stand
    upright and are without metadata."""
    quality: int = Field(95, ge=1, le=100)
    """Of what is encoded; JPEGs are without chroma subsampling."""
    resize: ResizeSettings | None = None
    """The size that pictures are brought to; by default that which they have."""

    @model_validator(mode="after")
    def _can_be_done(self) -> PictureSettings:
        if self.resize and self.encode == "never":
            raise ValueError(
                "encode never keeps all bytes, so nothing can be resized: drop resize, or say "
                "encode=auto"
            )
        return self


def encode(
    data: bytes, settings: PictureSettings, *, max_pixels: int, header: Header | None = None
) -> tuple[bytes, str]:
    """Return the bytes to export for an image file's bytes, and their extension.

    `header` is what `read_header` says of them, where that is known.

    A picture is made smaller than asked for where a side is more than its format can have, and where
    it would be larger than `max_pixels`. Raises `shared.pictures.images.ImageError` for bytes that are no image,
    and for more than `max_pixels` where they are decoded.
    """
    header = header or read_header(data)
    resize, written = settings.resize, "webp" if settings.encode == "webp" else "jpeg"
    stored = (header.width, header.height)
    if settings.encode == "never" or (
        settings.encode == "auto"
        and header.format == "jpeg"
        and _target(stored, resize, LONGEST_SIDE["jpeg"], max_pixels) == stored
    ):
        return data, EXTENSIONS.get(header.format, header.format)
    picture, size = _decode(data, header, resize, max_pixels)
    target = _target(size, resize, LONGEST_SIDE[written], max_pixels)
    if picture.size != target:
        picture = picture.resize(target, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    options = {"subsampling": 0} if written == "jpeg" else {}
    picture.save(stream, written, quality=settings.quality, **options)
    return stream.getvalue(), EXTENSIONS.get(written, written)


def _decode(
    data: bytes, header: Header, resize: ResizeSettings | None, max_pixels: int
) -> tuple[Image.Image, tuple[int, int]]:
    """Return the upright picture, and the whole size of what may be a JPEG of a scale of it.

    That scale has at least twice the pixels of the target in each direction.
    """
    width, height = header.width, header.height
    is_scaled = resize is not None and header.format == "jpeg"
    if not is_scaled or 0 < abs(width - height) < 8:  # an eighth of it may not tell how it lies
        picture = decode(data, max_pixels=max_pixels)
        return picture, picture.size
    assert resize is not None
    picture = decode(data, max_pixels=max_pixels, reduce_to=2 * resize.smaller_side)
    is_turned = (picture.width > picture.height) != (width > height)
    return picture, (height, width) if is_turned else (width, height)


def _target(
    size: tuple[int, int], resize: ResizeSettings | None, longest: int, max_pixels: int
) -> tuple[int, int]:
    """Return the width and height that a picture of this size is brought to."""
    scale = 1.0
    if resize is not None and not (resize.only_larger and min(size) <= resize.smaller_side):
        scale = resize.smaller_side / min(size)
    scale = min(scale, longest / max(size))
    if scale > 1:
        scale = max(1.0, min(scale, math.sqrt(max_pixels / math.prod(size))))
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height
