"""A recipe's training step on made-up images in memory: the trainer's own, at a batch that fits."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from benchmarks.gpu.section import ROOT, Context
from benchmarks.gpu.timing import lap
from train.data.crops import GLOBAL_VIEWS, Views, stack_views
from train.data.loader import Batch, loss_places
from train.data.masks import batch_masks
from train.distributed.ranks import Ranks
from train.estimate import estimate
from train.optimisation.schedules import Schedules, Values
from train.preview import load_of
from train.recipe import Recipe, read_recipe
from train.step import optimiser_step, to_device
from train.student import new_network
from train.system import System, build_system

CONFIG = ROOT / "pipelines.yaml"
MOST_IMAGES = 256
"""Of a micro-batch: larger ones were never needed to fill a card."""
SHARE_OF_MEMORY = 0.8
"""What an estimate may take of a card's free memory, which also holds an allocator's gaps."""
EPOCH_STEPS = 1250
BATCHES = 2
"""Different ones that take turns."""
SIDE = 256
"""Of the made-up images, in pixels."""
QUICK_COMPILED = "vits16"
QUICK_GROUP = 4


@dataclass
class Workload:
    """A system on its device, its batches in (pinned) memory, and the values of a step."""

    system: System
    batches: list[Batch]
    values: Values
    first_step: float
    """Seconds of the first step, compilation included."""
    steps: int = 0

    @property
    def recipe(self) -> Recipe:
        """Return the recipe, with the batch that was chosen."""
        return self.system.recipe

    @property
    def device(self) -> torch.device:
        """Return the device of the system."""
        return self.system.ranks.device

    def next_batch(self) -> Batch:
        """Return the batch whose turn it is; its colours are finished, as if by a worker."""
        return replace(self.batches[self.steps % BATCHES], photometric=None)

    def step(self) -> None:
        """Do what the training loop does with a batch that it has been given."""
        views = to_device(self.next_batch(), self.device)
        report = optimiser_step(self.system, [views], self.values, self.steps)
        if report.skipped:
            raise RuntimeError(f"step {self.steps} was skipped: {report.losses}, {report.norms}")
        self.steps += 1


def prepare(context: Context, name: str, *, compiled: bool) -> Workload:
    """Return the workload of a recipe behind its first step, at the largest batch that fits.

    Only the batch, the compilation and the device are not the recipe's; where the card does not
    even hold one of its groups, the group is smaller too. `quick` makes everything tiny, and
    compiles `QUICK_COMPILED` only: another takes a minute, and shows nothing new.
    """
    compiled &= not context.quick or name == QUICK_COMPILED
    device = torch.device("cuda", 0) if context.device == "cuda" else torch.device("cpu")
    overrides = [f"parallel.device={device.type}", f"parallel.compile={str(compiled).lower()}"]
    if context.quick:
        overrides += _tiny(name)
    recipe = read_recipe(CONFIG, name, overrides)
    sizes = [2 * QUICK_GROUP] if context.quick else list(_sizes(recipe, device))
    for images in sizes:
        workload = _try(_with_batch(recipe, images), device)
        if workload is not None:
            return workload
        gc.collect()
        torch.cuda.empty_cache()
    raise torch.OutOfMemoryError(f"{name} does not fit with {sizes[-1]} images")


def flops_of_image(recipe: Recipe, device: torch.device) -> float:
    """Return the FLOPs of an image in a step, as `train.estimate.estimate` counts them.

    Matrix products and convolutions of the teacher's forward pass and the student's forward and
    backward pass, heads included. Branches that stochastic depth skips are not counted, nor what
    activation checkpointing computes again, nor losses, centering and optimiser.
    """
    network = new_network(recipe, device="meta")
    return estimate(network, load_of(recipe, network, 1, device)).flops["in all"]


def _try(recipe: Recipe, device: torch.device) -> Workload | None:
    """Return the workload, or None where the card's memory does not suffice."""
    try:
        system = build_system(recipe, Ranks(0, 1, 0, device), None, fresh=True)
        steps, epoch = recipe.length(EPOCH_STEPS)
        schedules = Schedules(
            recipe.optimiser,
            recipe.teacher,
            batch_size=recipe.batch_size,
            total_steps=steps,
            steps_per_epoch=epoch,
        )
        batches = [make_batch(system, number) for number in range(BATCHES)]
        # Behind the steps that leave the last layer alone, which are cheaper than all others.
        values = schedules.at(schedules.frozen_steps)
        workload = Workload(system, batches, values, first_step=0.0)
        workload.first_step = lap(workload.step, device)
        return workload
    except torch.OutOfMemoryError:
        return None


def make_batch(system: System, number: int) -> Batch:
    """Return a batch of made-up images, the same for the same number, cut by the recipe's own draws.

    Its `photometric` holds what colours and sharpness are to become, for `crops.device=gpu`.
    """
    recipe, count = system.recipe, system.recipe.batch_size
    views = Views(recipe.crops.model_copy(update={"device": "gpu"}), recipe.seed)
    samples = range(number * count, (number + 1) * count)

    def cut(sample: int):
        random = torch.Generator().manual_seed(sample)
        image = torch.randint(256, (3, SIDE, SIDE), generator=random, dtype=torch.uint8)
        return views(image, sample, 0)

    with ThreadPoolExecutor() as pool:
        global_views, local_views, parameters = stack_views(list(pool.map(cut, samples)))
    masks = _masks(system, samples, number)
    index, weights = loss_places(masks, GLOBAL_VIEWS * count, system.patches)
    batch = Batch(
        step=number,
        micro=0,
        epoch=0,
        keys=[str(sample) for sample in samples],
        global_views=global_views,
        local_views=local_views,
        masks=masks,
        photometric=parameters,
        broken=[],
        index=index,
        weights=weights,
    )
    return batch.pin_memory() if system.ranks.device.type == "cuda" else batch


def _masks(system: System, samples: Sequence[int], step: int) -> torch.Tensor | None:
    recipe = system.recipe
    if recipe.masks is None:
        return None
    return batch_masks(
        samples,
        first=0,
        step=step,
        epochs=[0] * len(samples),
        grid=system.grid,
        group_size=recipe.group_size,
        seed=recipe.seed,
        settings=recipe.masks,
    )


def _with_batch(recipe: Recipe, images: int) -> Recipe:
    group = min(recipe.group_size, images)
    return recipe.model_copy(update={"batch_size": images, "group_size": group, "accumulate": 1})


def _sizes(recipe: Recipe, device: torch.device) -> Iterator[int]:
    """Yield batches to try, each half of the last, from the largest that should fit."""
    images = recipe.group_size
    one = _with_batch(recipe, images)
    # On a card attention never holds its weights, which the estimate would count on a CPU's word.
    one = one.model_copy(update={"model": recipe.model.model_copy(update={"attention": "fused"})})
    network = new_network(one, device="meta")
    memory = estimate(network, load_of(one, network, 1, device)).memory
    of_images = memory["activations"] + memory["logits"]
    room = SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0] - memory["in all"] + of_images
    while 2 * images <= MOST_IMAGES and 2 * images * of_images / recipe.group_size <= room:
        images *= 2
    while images >= 2:
        yield images
        images //= 2


def _tiny(name: str) -> list[str]:
    """Return what makes a recipe run on a CPU within seconds, each of its parts still there."""
    recipe = read_recipe(CONFIG, name)
    patch = new_network(recipe, device="meta").backbone.patch
    heads = [head for head in ("dino", "ibot") if getattr(recipe.heads, head) is not None]
    return [
        f"batch_size={2 * QUICK_GROUP}",
        f"group_size={QUICK_GROUP}",
        "model.options={embed_dim: 48, depth: 1, num_heads: 2}",
        f"model.image_size={4 * patch}",
        f"crops.global_size={4 * patch}",
        f"crops.local_size={2 * patch}",
        "crops.local_views=2",
        *(f"heads.{head}.{key}=64" for head in heads for key in ("prototypes", "hidden")),
    ]
