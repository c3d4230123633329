"""A recipe, a system and batches so small that a step takes no time on any device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from train.data.crops import Views, stack_views
from train.data.loader import Batch
from train.data.masks import batch_masks
from train.data.settings import CropSettings, MaskSettings
from train.distributed.ranks import Ranks
from train.objectives.ibot_loss import mask_weights
from train.optimisation.schedules import Values
from train.recipe import Recipe
from train.step import Report, optimiser_step, to_device
from train.system import System, build_system

IMAGES, SIDE, LOCAL_SIDE, PATCH = 8, 32, 16, 8
HEAD = {"prototypes": 64, "hidden": 32, "bottleneck": 16}
VALUES = Values(1e-3, 0.04, 0.9, 0.04, last_layer_frozen=False)


def recipe(**changes: object) -> Recipe:
    """In float32 and without stochastic depth, so that devices can be compared."""
    settings = {
        "batch_size": IMAGES,
        "group_size": 4,
        "crops": {"global_size": SIDE, "local_size": LOCAL_SIDE, "local_views": 2},
        "masks": {},
        "model": {
            "name": "vit_tiny_patch16_224",
            "patch_size": PATCH,
            "options": {"embed_dim": 64, "depth": 2, "num_heads": 2, "reg_tokens": 1},
            "layer_scale": 0.1,
        },
        "heads": {"dino": HEAD, "ibot": HEAD},
        "optimiser": {},
        "parallel": {"precision": "float32"},
    }
    return Recipe.model_validate(settings | changes)


def system_on(device: torch.device, **changes: object) -> System:
    return build_system(recipe(**changes), Ranks(0, 1, 0, device))


def batch(step: int, photometric_on: str = "cpu", *, masked: bool = True) -> Batch:
    """What the loader would give in a step."""
    rng = np.random.default_rng(step)
    images = torch.from_numpy(rng.integers(0, 256, (IMAGES, 3, 40, 48), dtype=np.uint8))
    crops = CropSettings(
        global_size=SIDE, local_size=LOCAL_SIDE, local_views=2, device=photometric_on
    )
    draw = Views(crops, 0)
    views = stack_views([draw(image, number, step) for number, image in enumerate(images)])
    masks = batch_masks(
        range(IMAGES), first=0, step=step, epochs=[step] * IMAGES, grid=(SIDE // PATCH,) * 2,
        group_size=4, seed=0, settings=MaskSettings(),
    )  # fmt: skip
    keys = [str(n) for n in range(IMAGES)]
    of_loss = mask_weights(masks) if masked else ()
    return Batch(
        *(step, 0, step, keys), *views[:2], masks if masked else None, views[2], [], *of_loss
    )


def train(system: System, steps: Sequence[int]) -> list[Report]:
    """Take these steps, each on its own batch."""
    masked = system.recipe.masks is not None
    batches = (batch(step, masked=masked) for step in steps)
    return [
        optimiser_step(system, [to_device(each, system.ranks.device)], VALUES, step)
        for step, each in zip(steps, batches, strict=True)
    ]
