"""Draws the patches that the student does not see: blocks as in BEiT, in exact, static numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from train.data.crops import GLOBAL_VIEWS
from train.data.settings import MaskSettings
from train.seeds import derive

_TRIES = 10
"""Boxes that BEiT draws before it gives up on placing another block."""


def block_mask(
    grid: tuple[int, int], count: int, generator: np.random.Generator, settings: MaskSettings
) -> np.ndarray:
    """Return a bool array of shape `grid` with exactly `count` patches masked, in blocks.

    Blocks are placed as in BEiT (arXiv 2106.08254, algorithm 1), which stops short of the count:
    what is missing then grows at the rim of the blocks, unless `settings.exact` is false and the
    mask may be smaller. ValueError if the grid holds fewer patches.
    """
    height, width = grid
    if not 0 <= count <= height * width:
        raise ValueError(f"{count} masked patches on a grid of {height} x {width}")
    mask = np.zeros(grid, bool)
    missing = count
    while missing >= (settings.min_patches if settings.exact else 1):
        added = _add_block_(mask, missing, generator, settings)
        if not added:
            break
        missing -= added
    while missing and settings.exact:
        missing -= _grow_(mask, missing, generator)
    return mask


def group_counts(group_crops: int, patches: int, settings: MaskSettings) -> np.ndarray:
    """Return the masked patches of each crop of a group, int64 [group_crops], in rising order.

    Their total is the same for every group, and so are the shapes of all that is masked. The first
    crops have none; which crop of a group takes which place is for `batch_masks` to draw.
    """
    masked = max(1, round(settings.share * group_crops))
    least, largest = settings.ratio
    middles = least + (np.arange(masked) + 0.5) / masked * (largest - least)
    counts = np.zeros(group_crops, np.int64)
    counts[group_crops - masked :] = np.maximum(np.rint(middles * patches), 1)
    return counts


def batch_masks(
    samples: Sequence[int],
    *,
    first: int,
    step: int,
    epochs: Sequence[int],
    grid: tuple[int, int],
    group_size: int,
    seed: int,
    settings: MaskSettings,
) -> Bool[Tensor, "crops patches"]:
    """Return the masks of both global crops of n images, crop-major: bool [2 n, patches].

    `samples` are consecutive images of the global batch of `step`, from its place `first` on. The
    crops of each group of `group_size` share out the counts of `group_counts` by a draw for this
    step and group, and the blocks are a draw for a sample's epoch, sample and crop: so neither
    ranks nor micro-batches change any mask. Of whole groups, and with exact counts, as many patches
    are masked in every step.
    """
    count = len(samples)
    patches = math.prod(grid)
    counts = group_counts(GLOBAL_VIEWS * group_size, patches, settings)
    masks = np.zeros((GLOBAL_VIEWS, count, *grid), bool)
    for group in range(first // group_size, -(-(first + count) // group_size)):
        dealt = _generator(seed, "strata", step, group).permutation(counts)
        begin = group * group_size
        own = range(max(first, begin), min(first + count, begin + group_size))
        for crop, place in product(range(GLOBAL_VIEWS), own):
            if wanted := int(dealt[crop * group_size + place - begin]):
                drawn_for = epochs[place - first], samples[place - first], crop
                draw = _generator(seed, "mask", *drawn_for)
                masks[crop, place - first] = block_mask(grid, wanted, draw, settings)
    return torch.from_numpy(masks.reshape(-1, patches))


def _generator(*parts: int | str) -> np.random.Generator:
    return np.random.default_rng(derive(*parts))


def _add_block_(
    mask: np.ndarray, missing: int, generator: np.random.Generator, settings: MaskSettings
) -> int:
    """Mask one block of at most `missing` new patches; return how many, 0 if no try fits."""
    height, width = mask.shape
    log_aspect = math.log(settings.aspect)
    for area, aspect, top, left in generator.random((_TRIES, 4)).tolist():
        patches = settings.min_patches + area * (missing - settings.min_patches)
        ratio = math.exp((1 - 2 * aspect) * log_aspect)
        tall, wide = round(math.sqrt(patches * ratio)), round(math.sqrt(patches / ratio))
        if not (0 < tall < height and 0 < wide < width):
            continue
        top, left = int(top * (height - tall + 1)), int(left * (width - wide + 1))
        block = mask[top : top + tall, left : left + wide]
        added = block.size - int(np.count_nonzero(block))
        if 0 < added <= missing:
            block[:] = True
            return added
    return 0


def _grow_(mask: np.ndarray, missing: int, generator: np.random.Generator) -> int:
    """Mask up to `missing` patches that touch masked ones (or any one, on an empty mask)."""
    ring = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.int8)
    ring[1:-1, 1:-1] = mask
    touching = ring[:-2, 1:-1] + ring[2:, 1:-1] + ring[1:-1, :-2] + ring[1:-1, 2:]
    rim = np.flatnonzero(~mask & (touching > 0))
    if not len(rim):
        rim, missing = np.flatnonzero(~mask), 1
    chosen = generator.permutation(rim)[:missing]
    mask.flat[chosen] = True
    return len(chosen)
