"""Copies, odd encodings and broken files for the built-in sample: bytes in, bytes out."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

COPIES = ("exact", "jpeg30", "half", "blur", "bright", "crop92", "png")
ODD = (
    *("exif6", "exif8", "cmyk", "palette", "bit16", "rgba"),
    *("gray", "gif", "webp", "tiff", "bmp", "png_named_jpg"),
)
BROKEN = (*("truncated",) * 6, "truncated_png", "html", "empty", "noise", "bomb")

_EXIF_ORIENTATION = 0x0112
_FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF"}


def encode(image: Image.Image, extension: str, quality: int = 88) -> bytes:
    """Return `image` as a file of the kind that `extension` (jpg, png, webp, gif) names."""
    return _saved(image, _FORMATS[extension], quality=quality)


def copy(data: bytes, extension: str, transform: str) -> tuple[bytes, str]:
    """Return the file and extension of a copy of the image file `data`, edited by a name in COPIES."""
    if transform == "exact":
        return data, extension
    image = Image.open(io.BytesIO(data)).convert("RGB")
    match transform:
        case "jpeg30":
            return encode(image, "jpg", 30), "jpg"
        case "half":
            size = (image.width // 2, image.height // 2)
            image = image.resize(size, Image.Resampling.LANCZOS)
        case "blur":
            image = image.filter(ImageFilter.GaussianBlur(1.5))
        case "bright":
            image = ImageEnhance.Brightness(image).enhance(1.2)
        case "crop92":
            trim = (round(0.04 * image.width), round(0.04 * image.height))
            image = image.crop((*trim, image.width - trim[0], image.height - trim[1]))
        case "png":
            return encode(image, "png"), "png"
    return encode(image, "jpg"), "jpg"


def odd(data: bytes, encoding: str) -> tuple[bytes, str]:
    """Return the image file `data` in an unusual but valid encoding, a name in ODD, and its extension.

    Decoded properly, it shows the same picture: upright, in the same colours (grey for `gray` and
    `bit16`).
    """
    image = Image.open(io.BytesIO(data)).convert("RGB")
    match encoding:
        case "exif6" | "exif8":
            turn = {"exif6": Image.Transpose.ROTATE_90, "exif8": Image.Transpose.ROTATE_270}
            exif = Image.Exif()
            exif[_EXIF_ORIENTATION] = int(encoding[-1])
            stored = image.transpose(turn[encoding])
            return _saved(stored, "JPEG", quality=90, exif=exif), "jpg"
        case "cmyk":
            return _saved(image.convert("CMYK"), "JPEG", quality=92), "jpg"
        case "palette":
            return _saved(image.quantize(128), "PNG"), "png"
        case "bit16":
            levels = image.convert("L").convert("I").point(lambda level: level * 257)
            return _saved(levels.convert("I;16"), "PNG"), "png"
        case "rgba":
            return _saved(_white_to_alpha(image), "PNG"), "png"
        case "gray":
            return _saved(image.convert("L"), "JPEG", quality=90), "jpg"
        case "gif":
            frames = [image.quantize(128), image.rotate(180).quantize(128)]
            return _saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "gif"
        case "webp":
            return _saved(image, "WEBP", quality=80), "webp"
        case "tiff":
            return _saved(image, "TIFF", compression="tiff_adobe_deflate"), "tif"
        case "bmp":
            return _saved(image, "BMP"), "bmp"
    return _saved(image, "PNG"), "jpg"


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
        case "empty":
            return b"", "jpg"
        case "noise":
            return chosen.randbytes(8000), "jpg"
    return _bomb(60_000), "png"


def _bomb(side: int) -> bytes:
    """Return a small PNG file whose header promises `side` * `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _white_to_alpha(image: Image.Image) -> Image.Image:
    """Return an RGBA picture, as transparent as can be, that over white looks like `image`."""
    colours = np.asarray(image, dtype=np.float64) / 255
    alpha = 1 - colours.min(axis=2, keepdims=True)
    inks = np.divide(colours - 1 + alpha, alpha, out=np.zeros_like(colours), where=alpha > 0)
    layers = np.concatenate([inks, alpha], axis=2)
    return Image.fromarray(np.rint(layers * 255).astype(np.uint8))


def _saved(image: Image.Image, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()
