"""Draws what a model computes for each patch over the picture that it was computed from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from train.frozen.model import FrozenModel
from train.visualise.sheets import SIDE

_STRENGTH = 0.75
"""How much of a heat map's colour is its own; the rest is the picture's."""
_DIMMED = 0.25


def central_square(image: Image.Image, side: int) -> Image.Image:
    """Return the largest square at the image's centre, `side` pixels wide (bicubic)."""
    short = min(image.size)
    left, top = ((length - short) // 2 for length in image.size)
    square = image.crop((left, top, left + short, top + short))
    return square.resize((side, side), Image.Resampling.BICUBIC)


def model_pixels(
    model: FrozenModel, images: Sequence[Image.Image]
) -> UInt8[Tensor, "n 3 size size"]:
    """Return the central squares of images, at the size that the model looks at."""
    size = model.needs.size
    squares = [np.array(central_square(image, size)) for image in images]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)


def heat(picture: Image.Image, values: Float[np.ndarray, "rows cols"]) -> Image.Image:
    """Return the picture in grey under a map of non-negative values, whose largest is the brightest.

    The map is enlarged bilinearly.
    """
    from matplotlib import colormaps

    scaled = values / max(float(values.max()), float(np.finfo(np.float32).tiny))
    large = _enlarged(Image.fromarray(scaled.astype(np.float32)), Image.Resampling.BILINEAR)
    colours = Image.fromarray(colormaps["inferno"](np.asarray(large), bytes=True)[..., :3])
    return Image.blend(picture.convert("L").convert("RGB"), colours, _STRENGTH)


def cut_out(picture: Image.Image, kept: Bool[np.ndarray, "rows cols"]) -> Image.Image:
    """Return the picture with all patches dimmed but the kept ones."""
    mask = _enlarged(Image.fromarray(kept), Image.Resampling.NEAREST)
    dimmed = Image.blend(
        Image.new("RGB", picture.size), picture.convert("L").convert("RGB"), _DIMMED
    )
    return Image.composite(picture, dimmed, mask)


def diverging(values: Float[np.ndarray, "rows cols"], extreme: float) -> Image.Image:
    """Return values from -`extreme` (blue) over 0 (white) to `extreme` (red), one block a patch."""
    from matplotlib import colormaps

    scaled = 0.5 + 0.5 * values / max(extreme, float(np.finfo(np.float32).tiny))
    return blocks(colormaps["RdBu_r"](scaled, bytes=True)[..., :3])


def blocks(colours: UInt8[np.ndarray, "rows cols 3"]) -> Image.Image:
    """Return one colour a patch, enlarged without smoothing."""
    return _enlarged(Image.fromarray(colours), Image.Resampling.NEAREST)


def _enlarged(image: Image.Image, how: Image.Resampling) -> Image.Image:
    return image.resize((SIDE, SIDE), how)
