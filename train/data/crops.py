"""Makes the global and local views of an image, from draws that belong to the sample and epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import (
    horizontal_flip_image,
    pil_to_tensor,
    resized_crop_image,
)

from shared.send import send
from train.data.edits import edited
from train.data.photometric import HUE, photometric
from train.data.settings import CropSettings
from train.seeds import derive

GLOBAL_VIEWS = 2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_TRIES = 10
"""How often torchvision's RandomResizedCrop draws a box before it takes one at the centre."""

# The columns of the uniform numbers that a view draws, all of them whether they are used or not: so
# that no draw depends on how another one came out.
_COLUMNS = {
    "area": _TRIES, "aspect": _TRIES, "top": 1, "left": 1, "flip": 1, "jitter": 1, "order": 4,
    "factors": 4, "grey": 1, "blur": 1, "sigma": 1, "solarise": 1,
}  # fmt: skip


class SampleViews(NamedTuple):
    """The crops of one image, uint8, and what is yet to be done to their colours and sharpness.

    `global_views` [2, 3, G, G], `local_views` [L, 3, l, l]. `parameters` are those of `photometric`,
    a row for each view, the global ones first; None where the views are finished. `deferred` where
    the training process is to finish them on its device, and not the worker.
    """

    global_views: UInt8[Tensor, "2 3 g g"]
    local_views: UInt8[Tensor, "v 3 l l"]
    parameters: dict[str, Tensor] | None
    deferred: bool = False


class Draws(NamedTuple):
    """What is drawn for the v views of n images, the global ones first, before any pixel is seen."""

    boxes: np.ndarray
    """int64 [n, v, 4]: top, left, height and width."""
    flips: np.ndarray
    """bool [n, v]"""
    parameters: dict[str, np.ndarray]
    """Those of `photometric`, [n, v, ...]."""


class Views:
    """Cuts images into views; what is drawn depends on seed, epoch and sample, and nothing else."""

    def __init__(self, settings: CropSettings, seed: int) -> None:
        self.settings = settings
        self.seed = seed

    @property
    def reduce_to(self) -> int:
        """The shorter side in pixels from which on no crop of a square image is magnified."""
        settings = self.settings
        sides = [settings.global_size / math.sqrt(settings.global_area[0])]
        if settings.local_views:
            sides.append(settings.local_size / math.sqrt(settings.local_area[0]))
        narrowest = min(settings.aspect[0], 1 / settings.aspect[1], 1.0)
        return math.ceil(max(sides) / math.sqrt(narrowest))

    def __call__(
        self, image: Image.Image | UInt8[Tensor, "3 h w"], sample: int, epoch: int
    ) -> SampleViews:
        """Return the crops of an RGB image, by the draws of this sample in this epoch.

        They are finished by `stack_views`, for many samples at once: that is faster.
        """
        pixels = pil_to_tensor(image) if isinstance(image, Image.Image) else image
        settings = self.settings
        draws = self.draw([sample], [epoch], np.array([pixels.shape[1:]]))
        global_views, local_views = (
            _cut(pixels, draws.boxes[0, rows], draws.flips[0, rows], size, settings.interpolation)
            for rows, size in (
                (slice(0, GLOBAL_VIEWS), settings.global_size),
                (slice(GLOBAL_VIEWS, None), settings.local_size),
            )
        )
        if settings.edits is not None:
            seed = derive(self.seed, "edits", epoch, sample)
            global_views = edited(global_views, settings.edits, seed)
        parameters = {name: torch.from_numpy(of[0]) for name, of in draws.parameters.items()}
        return SampleViews(global_views, local_views, parameters, deferred=settings.device == "gpu")

    def draw(self, samples: Sequence[int], epochs: Sequence[int], shapes: np.ndarray) -> Draws:
        """Return the draws of n samples, each in its epoch, for images of `shapes` [n, 2], high by wide."""
        settings, count = self.settings, GLOBAL_VIEWS + self.settings.local_views
        seeds = [derive(self.seed, "views", *of) for of in zip(epochs, samples, strict=True)]
        uniform = _draw(seeds, count)
        flips = uniform["flip"][..., 0] < settings.flip
        parameters = _photometric_parameters(uniform, settings)
        return Draws(_boxes(uniform, shapes, settings), flips, parameters)


def stack_views(
    samples: Sequence[SampleViews],
) -> tuple[UInt8[Tensor, "m 3 g g"], UInt8[Tensor, "k 3 l l"], dict[str, Tensor] | None]:
    """Return the global and the local views of n samples, crop-major, and what is yet to be done.

    Crop-major is view 0 of all n samples, then view 1 and so on. The views are finished and the
    parameters None, except where the work is deferred: then `finish_views` takes what this returns.
    """

    def crop_major(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors, dim=1).flatten(0, 1)

    first = samples[0]
    global_views = crop_major([sample.global_views for sample in samples])
    local_views = crop_major([sample.local_views for sample in samples])
    drawn = [sample.parameters for sample in samples if sample.parameters is not None]
    if not drawn:
        return global_views, local_views, None
    parameters = {name: crop_major([each[name] for each in drawn]) for name in drawn[0]}
    if first.deferred:
        return global_views, local_views, parameters
    return *finish_views(global_views, local_views, parameters), None


def finish_views(
    global_views: UInt8[Tensor, "m 3 g g"],
    local_views: UInt8[Tensor, "k 3 l l"],
    parameters: dict[str, Tensor] | None,
) -> tuple[UInt8[Tensor, "m 3 g g"], UInt8[Tensor, "k 3 l l"]]:
    """Return stacked views with what is yet to be done to them done, on the views' device."""
    if parameters is None:
        return global_views, local_views
    count = len(global_views)
    return (
        photometric(global_views, {name: rows[:count] for name, rows in parameters.items()}),
        photometric(local_views, {name: rows[count:] for name, rows in parameters.items()}),
    )


def normalise(
    images: UInt8[Tensor, "n 3 h w"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n 3 h w"]:
    """Return grey levels as numbers of ImageNet's mean 0 and deviation 1, on the images' device."""
    mean, deviation = (
        send(torch.tensor(values).mul_(255), images.device).view(3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return images.float().sub_(mean).mul_(1 / deviation).to(dtype)


def _draw(seeds: Sequence[int], views: int) -> dict[str, np.ndarray]:
    """Return the uniform numbers of each seed's views, [seeds, views, numbers], by their use."""
    shape = views, sum(_COLUMNS.values())
    numbers = np.stack([np.random.default_rng(seed).random(shape) for seed in seeds])
    columns = np.split(numbers, np.cumsum(list(_COLUMNS.values()))[:-1], axis=-1)
    return dict(zip(_COLUMNS, columns, strict=True))


def _between(
    uniform: np.ndarray, least: float | np.ndarray, largest: float | np.ndarray
) -> np.ndarray:
    return least + uniform * (largest - least)


def _boxes(
    uniform: dict[str, np.ndarray], shapes: np.ndarray, settings: CropSettings
) -> np.ndarray:
    """Return int64 [n, views, 4]: top, left, height and width by torchvision's RandomResizedCrop.

    The first of ten draws that fits in the image; else the largest box at the centre whose aspect
    is allowed.
    """
    height, width = (of[:, None] for of in shapes.astype(np.int64).T)
    views = uniform["area"].shape[1]
    areas = np.array([settings.global_area] * GLOBAL_VIEWS + [settings.local_area] * views)[:views]
    shares = _between(uniform["area"], areas[:, :1], areas[:, 1:])
    aspects = np.exp(_between(uniform["aspect"], *np.log(settings.aspect)))
    pixels, (highest, widest) = (height * width)[..., None], (height[..., None], width[..., None])
    widths = np.rint(np.sqrt(shares * aspects * pixels))
    heights = np.rint(np.sqrt(shares / aspects * pixels))
    fits = (widths > 0) & (widths <= widest) & (heights > 0) & (heights <= highest)
    first = fits.argmax(-1)[..., None]
    wide, high = (np.take_along_axis(of, first, -1)[..., 0] for of in (widths, heights))
    top = uniform["top"][..., 0] * (height - high + 1)
    left = uniform["left"][..., 0] * (width - wide + 1)
    boxes = np.stack([top, left, high, wide], axis=-1).astype(np.int64)
    wide = np.minimum(width, np.maximum(1, np.rint(height * settings.aspect[1])))
    high = np.minimum(height, np.maximum(1, np.rint(width / settings.aspect[0])))
    centred = np.stack([(height - high) // 2, (width - wide) // 2, high, wide], axis=-1)
    return np.where(fits.any(-1)[..., None], boxes, centred.astype(np.int64))


def _cut(
    pixels: UInt8[Tensor, "3 h w"],
    boxes: np.ndarray,
    flips: np.ndarray,
    size: int,
    interpolation: str,
) -> UInt8[Tensor, "v 3 s s"]:
    mode = InterpolationMode(interpolation)
    views = pixels.new_empty(len(boxes), 3, size, size)
    for view, box, flip in zip(views, boxes.tolist(), flips.tolist(), strict=True):
        crop = resized_crop_image(pixels, *box, [size, size], interpolation=mode, antialias=True)
        view.copy_(horizontal_flip_image(crop) if flip else crop)
    return views


def _photometric_parameters(
    uniform: dict[str, np.ndarray], settings: CropSettings
) -> dict[str, np.ndarray]:
    views = uniform["jitter"].shape[1]
    strength = np.array(settings.jitter)
    least, largest = 1 - strength, 1 + strength
    least = np.maximum(least, 0)
    least[HUE], largest[HUE] = -strength[HUE], strength[HUE]
    factors = _between(uniform["factors"], least, largest)
    blur = np.full(views, settings.blur[2])
    blur[:GLOBAL_VIEWS] = settings.blur[:GLOBAL_VIEWS]
    solarise = np.zeros(views)
    solarise[1] = settings.solarise
    sigma = _between(uniform["sigma"][..., 0], *settings.blur_sigma)
    sigma = np.where(uniform["blur"][..., 0] < blur, sigma, 0)
    return {
        "jitter": uniform["jitter"][..., 0] < settings.jitter_probability,
        "order": uniform["order"].argsort(-1),
        "factors": factors.astype(np.float32),
        "grey": uniform["grey"][..., 0] < settings.grey,
        "sigma": sigma.astype(np.float32),
        "solarise": uniform["solarise"][..., 0] < solarise,
    }
