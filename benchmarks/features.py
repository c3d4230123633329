"""Feature extraction (decode, prepare, forward, write) against the bare forward pass, in one run.

Both sides take turns, with the same threads. Where as many threads decode as compute, decoding
takes its time from the forward pass: the other limit is 1 / (decode + forward).

    .venv/bin/python benchmarks/features.py
    .venv/bin/python benchmarks/features.py --model untrained:vit_small_patch16_224 --images 128
"""

from __future__ import annotations

import io
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import click
import torch

# Before the folder of this file, in which `train` is a file and not the package.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.multicrop import photographs
from train.data.labelled import LabelledImages
from train.evaluation.features import bank
from train.frozen.loading import load_models
from train.frozen.model import FrozenModel


def write_shard(path: Path, size: tuple[int, int], count: int) -> None:
    """Write `count` JPEGs cut from photographs, of ten classes; the same at every call."""
    with tarfile.open(path, "w") as tar:
        for number, data in enumerate(photographs(size, "JPEG", count)):
            for name, content in (("jpg", data), ("cls", b"%d" % (number % 10))):
                member = tarfile.TarInfo(f"{number:06d}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def decoded(
    model: FrozenModel, shard: Path, batch_size: int, workers: int, scratch: Path
) -> tuple[float, list[torch.Tensor]]:
    """Return the seconds of decoding and preparing alone, and the batches."""
    images = LabelledImages(
        "benchmark",
        str(shard),
        transform=model.transform,
        batch_size=batch_size,
        scratch=scratch,
        threads=workers,
    )
    started = time.perf_counter()
    batches = [batch.images for batch in images.batches()]
    return time.perf_counter() - started, batches


@torch.no_grad()
def forward(model: FrozenModel, batches: list[torch.Tensor]) -> float:
    """Return the seconds of the network alone, on images that are normalised already."""
    precision = getattr(torch, model.precision)
    ready = [model.normalised(batch) for batch in batches]
    started = time.perf_counter()
    with torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
        for batch in ready:
            outputs = model.module(batch)
    outputs.cpu()  # which waits for all of it
    return time.perf_counter() - started


@click.command()
@click.option("--model", "name", default="untrained:vit_small_patch16_224")
@click.option("--size", type=int, help="Of the model's input, by default its own.")
@click.option("--width", default=500, help="Of the JPEGs.")
@click.option("--height", default=375)
@click.option("--images", default=192)
@click.option("--batch", default=64)
@click.option("--threads", default=2)
@click.option("--workers", default=2)
@click.option("--repetitions", default=3)
def main(name, size, width, height, images, batch, threads, workers, repetitions) -> None:
    """Print images/s of all sides and their ratios, the medians of all repetitions."""
    torch.set_num_threads(threads)
    (model,) = load_models([name], size=size)
    (part,) = model.parts
    ratios: dict[str, list[float]] = {"forward": [], "decode + forward": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shard, few = folder / "shard.tar", folder / "few.tar"
        write_shard(shard, (width, height), images)
        write_shard(few, (width, height), 2)

        def features(data: Path, cache: str) -> float:
            at = {"cache": folder / cache, "batch_size": batch, "workers": workers}
            started = time.perf_counter()
            bank(model, str(data), role="benchmark", **at)
            return time.perf_counter() - started

        features(few, "warm")  # imports, and chooses the form of attention
        _, batches = decoded(part, shard, batch, workers, folder)
        bare = forward(part, batches)
        for repetition in range(repetitions):
            decoding, _ = decoded(part, shard, batch, workers, folder)
            whole = features(shard, f"cache-{repetition}")
            before, bare = bare, forward(part, batches)
            between = (before + bare) / 2
            ratios["forward"].append(between / whole)
            ratios["decode + forward"].append((decoding + between) / whole)
            sides = {"decode": decoding, "forward": between, "features": whole}
            rates = "  ".join(f"{side} {images / took:7.1f}/s" for side, took in sides.items())
            click.echo(rates)
    click.echo(f"{name} at {part.needs.size} px, {part.precision}, {threads} threads")
    for limit, found in ratios.items():
        click.echo(f"features / ({limit}): {statistics.median(found):.3f}")


if __name__ == "__main__":
    main()
