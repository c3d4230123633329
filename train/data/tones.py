"""Edits of a picture's light, and of its detail: vignettes, exposure, sharpening, noise, few colours."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter


def light(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Darken or brighten the picture: by a curve, all over, towards the edges or to one side."""
    values = np.asarray(image, np.float64) / 255
    for kind in rng.choice(
        ["vignette", "slope", "gamma", "exposure", "levels"], rng.integers(1, 3), replace=False
    ):
        if kind == "vignette":
            values = values * _vignette(values.shape[:2], rng)
        elif kind == "slope":
            values = values * _slope(values.shape[:2], rng)
        elif kind == "gamma":
            values = values.clip(0, 1) ** np.exp(rng.uniform(-1.1, 1.1))
        elif kind == "exposure":
            values = values * 2 ** rng.uniform(-1.8, 1.3)
        else:
            black, white = rng.uniform(-0.3, 0.35), rng.uniform(0.65, 1.4)
            # All channels alike, or each a little otherwise: a cast of colour.
            cast = rng.uniform(-0.12, 0.12, 3) * (rng.random() < 0.5)
            values = black + cast + (white - black) * values
    return _picture(255 * values)


def detail(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Sharpen the picture, or give it noise, fewer levels, fewer colours or coarse blocks."""
    kind = rng.choice(["sharpen", "noise", "levels", "palette", "blocks"], p=[0.35, 0.2, 0.15, 0.15, 0.15])  # fmt: skip
    if kind == "sharpen":
        radius, percent = np.exp(rng.uniform(np.log(0.5), np.log(4))), int(rng.integers(80, 400))
        return image.filter(ImageFilter.UnsharpMask(radius, percent, 0))
    if kind == "noise":
        channels = rng.choice([1, 3])
        noise = rng.normal(0, rng.uniform(5, 45), (image.height, image.width, channels))
        return _picture(np.asarray(image, np.float64) + noise)
    if kind == "levels":
        steps = int(rng.integers(1, 8))
        return _picture(np.rint(np.asarray(image) / 255 * steps) * 255 / steps)
    if kind == "palette":
        dither = rng.choice([Image.Dither.NONE, Image.Dither.FLOYDSTEINBERG])
        few = image.quantize(int(rng.integers(4, 64)))
        return image.quantize(palette=few, dither=dither).convert("RGB")
    side = max(6, round(image.width / rng.uniform(1.5, 5)))
    small = image.resize((side, side), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _vignette(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return factors [h, w, 1] that fall, or rise, with the distance from a point near the middle."""
    rows, columns = (
        np.linspace(-1, 1, side) - centre
        for side, centre in zip(shape, rng.uniform(-0.4, 0.4, 2), strict=True)
    )
    far = np.hypot(rows[:, None] * rng.uniform(0.7, 1.4), columns) ** rng.uniform(1, 4)
    strength = rng.uniform(0.25, 1.0) if rng.random() < 0.8 else -rng.uniform(0.2, 0.8)
    return (1 - strength * far).clip(0)[..., None]


def _slope(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return factors [h, w, 1] that go from one value to another across the picture."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = (np.linspace(-0.5, 0.5, side) for side in shape)
    way = (0.5 + rows[:, None] * np.sin(angle) + columns * np.cos(angle)).clip(0, 1)
    start, end = rng.uniform(0.05, 0.7), rng.uniform(0.9, 1.6)
    return (start + (end - start) * way)[..., None]


def _picture(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.uint8(np.rint(levels).clip(0, 255)))
