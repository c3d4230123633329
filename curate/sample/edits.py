"""Copies, odd encodings and broken files for the built-in sample: bytes in, bytes out."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, PngImagePlugin

COPIES = ("exact", "jpeg30", "half", "blur", "bright", "crop92", "png")
ODD = (
    *("exif6", "exif8", "cmyk", "palette", "bit16", "rgba"),
    *("gray", "gif", "webp", "tiff", "bmp", "png_named_jpg"),
)
BROKEN = (*("truncated",) * 6, "truncated_png", "html", "empty", "noise", "bomb")

BOMB_SIDE = 60_000
FORMATS = {"jpg": "JPEG", "tif": "TIFF"}
ORIENTATION = 0x0112  # Exif


def encode(image: Image.Image, extension: str, **options: Any) -> bytes:
    """Return `image` as a file of the format that `extension` names."""
    stream = io.BytesIO()
    image.save(stream, FORMATS.get(extension, extension.upper()), **options)
    return stream.getvalue()


def copy(data: bytes, extension: str, transform: str) -> tuple[bytes, str]:
    """Return the file and extension of a copy of the image file `data`, edited by a name in COPIES."""
    if transform == "exact":
        return data, extension
    image = Image.open(io.BytesIO(data)).convert("RGB")
    match transform:
        case "half":
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        case "blur":
            image = image.filter(ImageFilter.GaussianBlur(1.5))
        case "bright":
            image = ImageEnhance.Brightness(image).enhance(1.2)
        case "crop92":
            left, upper = round(0.04 * image.width), round(0.04 * image.height)
            image = image.crop((left, upper, image.width - left, image.height - upper))
        case "png":
            return encode(image, "png"), "png"
    return encode(image, "jpg", quality=30 if transform == "jpeg30" else 88), "jpg"


def odd(data: bytes, encoding: str) -> tuple[bytes, str]:
    """Return the image file `data` in an unusual but valid encoding, a name in ODD, and its extension.

    Decoded properly, it shows the same picture: upright, in the same colours (grey for `gray` and
    `bit16`).
    """
    image = Image.open(io.BytesIO(data)).convert("RGB")
    extension = "jpg"
    options: dict[str, Any] = {"quality": 90}
    match encoding:
        case "exif6" | "exif8":
            options["exif"] = exif = Image.Exif()
            exif[ORIENTATION] = int(encoding[-1])
            image = image.rotate(90 if encoding == "exif6" else 270, expand=True)
        case "cmyk":
            image = image.convert("CMYK")
        case "gray":
            image = image.convert("L")
        case "palette":
            image, extension, options = image.quantize(128), "png", {}
        case "bit16":
            grey = np.asarray(image.convert("L"), np.uint16) * 257
            image, extension, options = Image.fromarray(grey), "png", {}
        case "rgba":
            image, extension, options = _white_to_alpha(image), "png", {}
        case "gif":
            others = [image.rotate(180).quantize(128)]
            image, extension = image.quantize(128), "gif"
            options = {"save_all": True, "append_images": others}
        case "webp":
            extension = "webp"
        case "tiff":
            extension, options = "tif", {"compression": "tiff_adobe_deflate"}
        case "bmp":
            extension, options = "bmp", {}
        case "png_named_jpg":
            return encode(image, "png"), "jpg"
    return encode(image, extension, **options), extension


def broken(data: bytes, fault: str, chosen: random.Random) -> tuple[bytes, str]:
    """Return a file that is no readable image, by a name in BROKEN, and its extension.

    `data` is the JPEG file that the truncated ones are the beginning of.
    """
    match fault:
        case "truncated":
            return data[: round(len(data) * chosen.uniform(0.3, 0.7))], "jpg"
        case "truncated_png":
            png = encode(Image.open(io.BytesIO(data)), "png")
            return png[: len(png) // 2], "png"
        case "html":
            page = "<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>\n"
            return page.encode(), "jpg"
        case "noise":
            return chosen.randbytes(8000), "jpg"
        case "bomb":
            return _bomb(), "png"
    return b"", "jpg"


def _bomb() -> bytes:
    """Return a small PNG file whose header promises BOMB_SIDE * BOMB_SIDE pixels."""
    stream = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    stream.seek(0, io.SEEK_END)
    header = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    for chunk in ((b"IHDR", header), (b"IDAT", rows), (b"IEND",)):
        PngImagePlugin.putchunk(stream, *chunk)
    return stream.getvalue()


def _white_to_alpha(image: Image.Image) -> Image.Image:
    """Return an RGBA picture, as transparent as can be, that over white looks like `image`."""
    colours = np.asarray(image, np.float64) / 255
    alpha = 1 - colours.min(axis=2, keepdims=True)
    inks = (colours - 1 + alpha) / np.maximum(alpha, 1 / 255)
    return Image.fromarray(np.rint(np.dstack([inks, alpha]) * 255).astype(np.uint8))
