"""What `--dry-run` prints: the recipe with every setting, and what a step of it costs."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import torch
import yaml

from train.data.crops import GLOBAL_VIEWS, Views
from train.data.loader import reduced_side
from train.data.masks import group_counts
from train.data.resident import resident_bytes
from train.data.sources import describe_sources, open_index
from train.distributed.parallelise import resolve_precision, shares
from train.estimate import Load, estimate
from train.model.network import Network
from train.recipe import Recipe
from train.student import new_network
from train.system import frozen_teacher
from train.weights.trained import find_trained


def preview(recipe: Recipe, name: str, shards: str | None, select: str | None) -> str:
    """Return the resolved recipe, the images' place, and parameters, tokens, FLOPs and memory.

    For as many processes as `WORLD_SIZE` of the environment says, and `LOCAL_WORLD_SIZE` a machine,
    by default 8. Raises LvdError for settings that
    do not fit together, and where no images are.
    """
    sources = describe_sources(recipe, shards, select)
    processes = int(os.environ.get("WORLD_SIZE", 1))
    images = recipe.micro_batch(processes)
    if recipe.continue_from is not None:
        find_trained(Path(recipe.continue_from))  # says so where there is nothing to go on from
    network = new_network(recipe, device="meta")
    device = recipe.parallel.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = int(os.environ.get("LOCAL_WORLD_SIZE", min(8, processes)))
    load = load_of(recipe, network, processes, torch.device(device), machine)
    grid = network.backbone.grid(recipe.crops.global_size, recipe.crops.global_size)
    frozen = frozen_teacher(recipe, grid, torch.device("cpu"))
    settings = yaml.safe_dump({name: recipe.model_dump(mode="json")}, sort_keys=False)
    each = f"{processes} process{'es' if processes > 1 else ''} of {recipe.accumulate} x {images}"
    return "\n".join(
        [
            settings.rstrip(),
            "",
            *sources,
            f"{'images of a step':<20}{recipe.batch_size:,}: {each}",
            f"{'device':<20}{device}, {str(load.precision).removeprefix('torch.')}",
            *_resident(recipe, shards, select),
            estimate(network, load, frozen).table(),
        ]
    )


def load_of(
    recipe: Recipe, network: Network, processes: int, device: torch.device, machine: int = 1
) -> Load:
    """Return what each of the processes trains on in one forward pass of `network` on `device`.

    There are `machine` of them a machine. Raises LvdError where they do not divide the batch, or
    `machine` does not divide them.
    """
    crops, images = recipe.crops, recipe.micro_batch(processes)
    patches = math.prod(network.backbone.grid(crops.global_size, crops.global_size))
    masked = 0
    if recipe.masks is not None:
        counts = group_counts(GLOBAL_VIEWS * recipe.group_size, patches, recipe.masks)
        masked = int(counts.sum()) * images // recipe.group_size
    elif recipe.objectives.ibot > 0:
        masked = GLOBAL_VIEWS * images * patches
    return Load(
        images=images,
        global_size=crops.global_size,
        local_size=crops.local_size,
        local_views=crops.local_views,
        masked=masked,
        accumulate=recipe.accumulate,
        precision=resolve_precision(recipe.parallel, device),
        checkpointing=recipe.parallel.activation_checkpointing,
        shards=shares(recipe.parallel, processes, machine),
        device=device,
    )


def _resident(recipe: Recipe, shards: str | None, select: str | None) -> list[str]:
    """Return the line about images that are to lie on the device; none where they are not to."""
    if not recipe.data.resident:
        return []
    reduce_to = reduced_side(recipe.data, Views(recipe.crops, recipe.seed))
    with tempfile.TemporaryDirectory() as scratch:
        index = open_index(recipe, shards, select, Path(scratch))
        needed = resident_bytes(index, reduce_to)
    return [
        f"{'resident images':<20}{len(index):,}, about {needed / 2**30:.2f} GiB on each process's "
        "device, on top of the memory below"
    ]
