"""Turns untrusted bytes into upright RGB pictures, or into a reason why that cannot be done."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from shared.pictures.damage import with_end_marker, without_metadata

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

# Only these readers ever see the bytes: Pillow's EPS reader, for one, starts Ghostscript. The
# readers are called directly, because `Image.open` refuses a bomb before it tells its dimensions.
# An MPO's first picture is a plain JPEG.
READERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}

SIGNATURE = 16
"""Bytes that tell a format."""

_SIGNATURES: tuple[tuple[str, int, bytes], ...] = (
    ("jpeg", 0, b"\xff\xd8\xff"),
    ("png", 0, b"\x89PNG\r\n\x1a\n"),
    ("webp", 8, b"WEBP"),
    ("gif", 0, b"GIF87a"),
    ("gif", 0, b"GIF89a"),
    ("bmp", 0, b"BM"),
    ("tiff", 0, b"II*\0"),
    ("tiff", 0, b"MM\0*"),
    ("tiff", 0, b"II+\0"),
    ("tiff", 0, b"MM\0+"),
)

_BMP_HEADER_SIZES = [bytes((size, 0)) for size in (12, 40, 52, 56, 64, 108, 124)]

_OTHER_CONTENT: tuple[tuple[str, int, bytes], ...] = (
    ("an HTML page", 0, b"<!doctype html"),
    ("an HTML page", 0, b"<html"),
    ("an SVG drawing", 0, b"<svg"),
    ("XML text", 0, b"<?xml"),
    ("a PDF", 0, b"%pdf"),
    ("PostScript", 0, b"%!ps"),
    ("an AVIF picture", 4, b"ftypavif"),
    ("a HEIF picture", 4, b"ftyphe"),
    ("a HEIF picture", 4, b"ftypmif1"),
    ("a JPEG 2000 picture", 4, b"jp  "),
    ("a JPEG XL picture", 4, b"jxl "),
    ("a Photoshop file", 0, b"8bps"),
    ("an icon", 0, b"\0\0\1\0"),
    ("a zip archive", 0, b"pk\3\4"),
    ("gzip data", 0, b"\x1f\x8b"),
    ("JSON text", 0, b"{"),
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)

_PILLOW = r"PIL\."
_EXIF_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_PHOTOMETRIC = 256, 257, 262


class ImageError(Exception):
    """Bytes that give no picture; its text is the reason that stands in a report row."""


@dataclass(frozen=True)
class Header:
    """What an image says of itself: its stored size, before any EXIF rotation, and its format."""

    width: int
    height: int
    format: str


def sniff(head: bytes) -> str | None:
    """Return the readable format (`jpeg`, `png`, ...) that the first bytes announce, or None."""
    for name, offset, magic in _SIGNATURES:
        if head[offset : offset + len(magic)] == magic:
            return name
    return None


def is_image(head: bytes) -> bool:
    """Tell whether the first `SIGNATURE` bytes begin a picture, readable or not, whatever the file is called."""
    if sniff(head) == "bmp":  # two letters are also how a text may begin
        return head[6:10] == bytes(4) and head[14:16] in _BMP_HEADER_SIZES
    return sniff(head) is not None or _looks_like(head).endswith("picture")


def read_header(data: bytes) -> Header:
    """Return size and format of an image without decoding a pixel.

    A decompression bomb has a header like any other picture; `decode` is what refuses it.
    Raises ImageError where the bytes are no image of a readable format.
    """
    name = _readable_format(data)
    size = _canvas(data, name)
    if size is None:
        image = _open(data, name)
        size = image.size
        if name == "tiff":  # Pillow gives the size after rotation
            tags = image.tag_v2  # type: ignore[attr-defined]  # of its subclass for TIFF
            size = tags[_TIFF_WIDTH], tags[_TIFF_HEIGHT]
    return Header(size[0], size[1], name)


def upright_size(data: bytes) -> tuple[int, int]:
    """Return height and width of what `decode` returns, without decoding a pixel.

    Raises ImageError where the bytes are no image of a readable format.
    """
    header = read_header(data)
    turned = _orientation(_open(data, header.format)) in _ON_ITS_SIDE
    return (header.width, header.height) if turned else (header.height, header.width)


def decode(
    data: bytes, *, max_pixels: int = 178_956_970, reduce_to: int | None = None
) -> Image.Image:
    """Return the image upright, in RGB: the first frame, alpha over white, 16 bits scaled to 8.

    With `reduce_to`, a JPEG may come out smaller (a DCT scale of 1/2, 1/4 or 1/8), its shorter side
    still at least `reduce_to`, for less than half of the time. Raises ImageError for whatever
    cannot be decoded whole: truncated data too, and more than `max_pixels` by the header. As in
    browsers, damaged metadata costs no picture, nor does a JPEG's missing end marker.
    """
    name = _readable_format(data)
    _check_size(_canvas(data, name), max_pixels)
    image = _open(data, name)
    _check_size(image.size, max_pixels)
    if name == "jpeg":
        whole = with_end_marker(data, _stored_pixels)
        if whole is None:
            raise ImageError("truncated: the JPEG has neither its last pixels nor its end marker")
        image = image if whole is data else _open(whole, name)
    try:
        return _pixels(image, reduce_to)
    except ImageError:
        plain = without_metadata(data, name)
        if plain == data:
            raise
        return _pixels(_open(plain, name), reduce_to)


def _stored_pixels(jpeg: bytes) -> bytes:
    image = _open(jpeg, "jpeg")
    try:
        return image.tobytes()
    except Exception as error:
        raise ImageError(_reason(error)) from error


def _pixels(image: ImageFile, reduce_to: int | None) -> Image.Image:
    try:
        if reduce_to is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
            image.draft(None, (reduce_to, reduce_to))
        image.load()
        rgb = _to_rgb(image)
    except Exception as error:
        raise ImageError(_reason(error)) from error
    turn = _UPRIGHT.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _readable_format(data: bytes) -> str:
    if not data:
        raise ImageError("empty: 0 bytes")
    name = sniff(data[:SIGNATURE])
    if name is None:
        raise ImageError(f"not an image of a readable format{_looks_like(data)}")
    return name


def _looks_like(data: bytes) -> str:
    head = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for what, offset, magic in _OTHER_CONTENT:
        if head[offset : offset + len(magic)] == magic or data.startswith(magic, offset):
            return f": it looks like {what}"
    return ": it holds only zeros" if not any(data[:4096]) else ""


def _canvas(data: bytes, name: str) -> tuple[int, int] | None:
    """Return the size that a WebP or GIF declares: their readers allocate while they open."""
    try:
        if name == "gif":
            return _gif_canvas(data)
        if name != "webp":
            return None
        kind = data[12:16]
        if kind == b"VP8X":
            width, height = data[24:27], data[27:30]
            return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
        if kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    except (struct.error, IndexError):
        raise ImageError(f"truncated: the {name} header is incomplete") from None


def _gif_canvas(data: bytes) -> tuple[int, int]:
    """Return the logical screen, as large as the first frame where that does not fit on it."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (2 << (flags & 7)) * 3 * (flags >> 7)
    while data[at : at + 1] == b"!":  # extensions: a label, then blocks up to an empty one
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    if data[at : at + 1] != b",":
        return width, height
    left, top, wide, high = struct.unpack_from("<4H", data, at + 1)
    return max(width, left + wide), max(height, top + high)


def _check_size(size: tuple[int, int] | None, max_pixels: int) -> None:
    if size is None:
        return
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"no pixels: {width}x{height}")
    if width * height > max_pixels:
        raise ImageError(f"too large: {width}x{height} is over the limit of {max_pixels} pixels")


def _open(data: bytes, name: str) -> ImageFile:
    _silence_pillow()
    try:
        return READERS[name](io.BytesIO(data))
    except Exception as error:  # hostile headers raise anything, from SyntaxError to MemoryError
        with contextlib.suppress(Exception):
            return READERS[name](io.BytesIO(without_metadata(data, name)))
        raise ImageError(f"broken {name} header: {_reason(error)}") from error


def _silence_pillow() -> None:
    # `warnings.catch_warnings` is not thread-safe, so one filter is added, and stays.
    if not any(getattr(module, "pattern", None) == _PILLOW for *_, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    if "truncated" in text.lower():
        return f"truncated: {text}"
    if text and isinstance(error, (OSError, SyntaxError, ValueError)):
        return text
    return f"{type(error).__name__} {text}".rstrip()


def _orientation(image: ImageFile) -> int:
    try:
        # Pillow has turned a TIFF by itself once it is loaded, and dropped the tag.
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a broken EXIF block does not spoil the picture
        return 1


def _to_rgb(image: ImageFile) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _to_eight_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _to_eight_bits(image: ImageFile) -> Image.Image:
    """Scale a picture of wide grey values to 0..255 by the range that its values were written in.

    The mode does not tell that range: it is the smallest of 8, 16 and 32 bits (for floats of 1.0,
    255 and 65,535) that holds the brightest pixel. So 8-bit values in a 16-bit file, a common slip
    of writers, do not come out black.
    """
    values = np.asarray(image)
    if image.mode in ("I", "F"):
        values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    brightest = float(values.max())
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0, 2.0**32 - 1)
    top = next((r for r in ranges if brightest <= r), brightest)
    grey = np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8)
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16") and tags.get(_TIFF_PHOTOMETRIC) == 0:  # WhiteIsZero
        grey = 255 - grey
    return Image.fromarray(grey)
