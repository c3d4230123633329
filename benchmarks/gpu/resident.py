"""A whole training run at 64 px whose images stay in the card's memory: ViT-Ti/8, images/s."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.gpu.pictures import write_shards
from benchmarks.gpu.section import Context, Row
from benchmarks.gpu.workload import CONFIG
from train.loop import train
from train.monitoring.metrics import METRICS, read_metrics
from train.recipe import read_recipe

GOAL = 10_000
"""Images/s on one H100."""

# `cifar` as it is but for what makes it ViT-Ti/8 at 64 px, and for a batch that fills a card.
SETTINGS = (
    "data={resident: true}",
    "batch_size=512",
    "steps=400",
    "crops.global_size=64",
    "crops.local_size=32",
    "model.patch_size=8",
    "model.options={embed_dim: 192, depth: 12, num_heads: 3}",
    "parallel={precision: bfloat16}",
    "log={every: 25, tensorboard: false}",
    "checkpoints={every: 100000, keep: 1}",
)
QUICK_SETTINGS = (
    "batch_size=64",
    "steps=6",
    "model.options={embed_dim: 48, depth: 2, num_heads: 2}",
    "optimiser={warmup_epochs: 1, freeze_last_layer_epochs: 0.5}",
    "log={every: 2, tensorboard: false}",
)
IMAGES, QUICK_IMAGES = 20_000, 128


def measure(context: Context, emit: Callable[[Row], None], compiled: bool) -> None:
    """Train by `lvd-train`'s own loop, from shards to the model, and read its metrics."""
    compiled &= not context.quick  # it would be as long as all other sections together
    count = QUICK_IMAGES if context.quick else IMAGES
    name = "compiled" if compiled else "eager"
    folder = Path(tempfile.mkdtemp(prefix="resident-", dir=context.scratch))
    shards = write_shards(folder / "shards", count=count, size=(80, 72), shards=4)
    overrides = [*SETTINGS, *(QUICK_SETTINGS if context.quick else ())]
    overrides += [f"parallel.device={context.device}", f"parallel.compile={str(compiled).lower()}"]
    recipe = read_recipe(CONFIG, "cifar", overrides)
    train(recipe, str(shards), folder / "run")
    emit(
        {"mode": name, "batch": recipe.batch_size, **_steady(folder / "run"), "goal images/s": GOAL}
    )


def _steady(run: Path) -> Row:
    """Return the medians over the lines of metrics but the first, in which shapes compile."""
    lines = [line for line in read_metrics(run / METRICS) if "images_per_second" in line]
    steady = lines[1:]
    return {
        "images/s": median(line["images_per_second"] for line in steady),
        "waiting for data": median(line["data_wait"] for line in steady),
        "peak GiB": max(line["memory_gib"] for line in steady),
        "first lines images/s": lines[0]["images_per_second"],
    }
