"""Edited copies of an image, as crawls are full of them: what an embedder for copies has to find."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps


def edits_of(image: Image.Image, sha256: str, seed: int) -> dict[str, Image.Image]:
    """Return `edits` drawn by what the image is, not by its number: a new part changes none."""
    return edits(image, np.random.default_rng([seed, int(sha256[:16], 16)]))


def edits(image: Image.Image, rng: np.random.Generator) -> dict[str, Image.Image]:
    """Return edited copies of an RGB image, by the name of the edit."""
    width, height = image.size
    brightness = rng.uniform(1.2, 1.4)
    if rng.random() < 0.5:
        brightness = 1 / brightness
    side = np.sqrt(0.8)
    crop = max(1, round(width * side)), max(1, round(height * side))
    left = int(rng.integers(0, width - crop[0] + 1))
    top = int(rng.integers(0, height - crop[1] + 1))
    blur = ImageFilter.GaussianBlur(min(width, height) * rng.uniform(0.003, 0.006))
    red, green, blue = rng.integers(0, 256, 3).tolist()
    angle = 5 if rng.random() < 0.5 else -5
    return {
        "crop": image.crop((left, top, left + crop[0], top + crop[1])),
        "jpeg": _reencoded(image, 20),
        "third": image.resize((max(1, width // 3), max(1, height // 3)), Image.Resampling.LANCZOS),
        "caption": _captioned(image),
        "border": ImageOps.expand(image, round(0.15 * min(width, height)), (red, green, blue)),
        "colour": _recoloured(image, int(rng.integers(15, 40))),
        "rotation": image.rotate(angle, Image.Resampling.BICUBIC),
        "mirror": ImageOps.mirror(image),
        "grey": ImageOps.grayscale(image).convert("RGB"),
        "blur": image.filter(blur),
        "brightness": ImageEnhance.Brightness(image).enhance(brightness),
    }


def _reencoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer, formats=["JPEG"]).convert("RGB")


def _recoloured(image: Image.Image, turn: int) -> Image.Image:
    """Return the image with its hues turned by `turn` 256ths of the circle, and stronger colours."""
    pixels = np.array(image.convert("HSV"))
    pixels[..., 0] += np.uint8(turn)
    turned = Image.fromarray(pixels, "HSV").convert("RGB")
    return ImageEnhance.Color(turned).enhance(1.5)


def _captioned(image: Image.Image) -> Image.Image:
    """Return the image with a white strip below it that holds a line of something dark."""
    width, height = image.size
    strip = max(1, round(height * 0.15))
    canvas = Image.new("RGB", (width, height + strip), "white")
    canvas.paste(image, (0, 0))
    line = (
        width // 10,
        height + strip // 3,
        max(width // 10, width * 9 // 10),
        height + strip * 2 // 3,
    )
    ImageDraw.Draw(canvas).rectangle(line, fill=(30, 30, 30))
    return canvas
