"""Edited copies as crawls are full of them, one edit each: what pools are planted with."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

Edit = Callable[[Image.Image, np.random.Generator], Image.Image]


def _crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = np.sqrt(0.8)
    wide, high = round(image.width * side), round(image.height * side)
    left = int(rng.integers(0, image.width - wide + 1))
    top = int(rng.integers(0, image.height - high + 1))
    return image.crop((left, top, left + wide, top + high))


def _jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=20)
    return Image.open(buffer).convert("RGB")


def _third(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    size = max(1, image.width // 3), max(1, image.height // 3)
    return image.resize(size, Image.Resampling.LANCZOS)


def _caption(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    strip = max(10, round(image.height * 0.2))
    canvas = Image.new("RGB", (image.width, image.height + strip), "white")
    canvas.paste(image, (0, 0))
    font = ImageFont.load_default(0.7 * strip)
    text = "".join(rng.choice(list("abcdefghij klmnop"), 20))
    ImageDraw.Draw(canvas).text((2, image.height), text, fill="black", font=font)
    return canvas


def _border(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    edge = round(0.15 * min(image.size))
    return ImageOps.expand(image, edge, tuple(rng.integers(0, 256, 3).tolist()))


def _colour(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    turned = np.array(image.convert("HSV"))
    turned[..., 0] += np.uint8(rng.integers(15, 40))
    return ImageEnhance.Color(Image.fromarray(turned, "HSV").convert("RGB")).enhance(1.5)


EDITS: dict[str, Edit] = {
    "crop": _crop,
    "jpeg": _jpeg,
    "third": _third,
    "caption": _caption,
    "border": _border,
    "colour": _colour,
    "rotation": lambda image, rng: image.rotate(5, Image.Resampling.BICUBIC),
    "mirror": lambda image, rng: ImageOps.mirror(image),
    "grey": lambda image, rng: ImageOps.grayscale(image).convert("RGB"),
}
