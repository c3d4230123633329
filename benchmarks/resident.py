r"""Resident images against the loader that decodes: images/s from a step's samples to its tensors.

Both make the same micro-batches of small photographs, with masks, up to normalised views on the
device, and take turns in one process of one thread without workers: on a CPU, processor time is
counted, so a busy machine slows all of them; on a card, time to the end of its work. The third side
is what the workers of a resident run do: they draw. What the second takes longer is the device's.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.resident [--device cuda]
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.multicrop import photographs
from train.data.crops import Views
from train.data.index import ShardIndex, read_index
from train.data.loader import Batch, make_loader
from train.data.masks import batch_masks
from train.data.order import Order
from train.data.resident import ResidentImages, read_resident
from train.data.settings import CropSettings, DataSettings, MaskSettings
from train.distributed.ranks import Ranks
from train.step import to_device


class Unseen(ResidentImages):
    """Images of which no crop is cut: what remains is to draw."""

    def cut(self, samples: np.ndarray, draws: object, settings: CropSettings) -> tuple[Tensor, ...]:
        """Return no views."""
        return tuple(
            torch.empty(0, 3, size, size, dtype=torch.uint8, device=self.pixels.device)
            for size in (settings.global_size, settings.local_size)
        )


def write_shard(folder: Path, images: int, side: int) -> ShardIndex:
    """Return the index of one tar of JPEG photographs."""
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number, data in enumerate(photographs((side, side), "JPEG", images)):
            info = tarfile.TarInfo(f"{number:05d}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return read_index(str(folder / "0.tar"), folder)


def batches(
    index: ShardIndex, crops: CropSettings, batch: int, steps: int, resident: ResidentImages | None
) -> Iterator[Batch]:
    """Return micro-batches, made in this process."""
    rows = crops.global_size // 8
    masks = partial(
        batch_masks, grid=(rows, rows), group_size=batch, seed=0, settings=MaskSettings()
    )
    return make_loader(
        index,
        Order(index.sizes, batch_size=batch, window=1, seed=0),
        Views(crops, 0),
        masks,
        settings=DataSettings(workers=0),
        ranks=(0, 1),
        accumulate=1,
        start_step=0,
        stop_step=steps,
        resident=resident,
    )


@click.command()
@click.option("--device", default="cpu")
@click.option("--side", default=64, help="Pixels of an image and of a global view.")
@click.option("--local", default=24, help="Pixels of a local view.")
@click.option("--batch", default=128)
@click.option("--rounds", default=7)
def main(device: str, side: int, local: int, batch: int, rounds: int) -> None:
    """Time the sides in turns and print the medians, and the medians of their ratios."""
    torch.set_num_threads(1)
    place = torch.device(device)
    clock = time.process_time if place.type == "cpu" else time.perf_counter
    crops = CropSettings(global_size=side, local_size=local)
    with tempfile.TemporaryDirectory() as folder:
        index = write_shard(Path(folder), 4 * batch, side)
        read = read_resident(index, None, workers=0, prefetch=1, ranks=Ranks(0, 1, 0, place))
        unseen = Unseen(read.pixels, read.shapes, read.broken)
        sides = {"loader": None, "resident": read, "resident, draws alone": unseen}
        made = {
            name: batches(index, crops, batch, rounds + 1, images) for name, images in sides.items()
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds + 1):
            for name, following in made.items():
                began = clock()
                drawn = next(following)
                if name != "resident, draws alone":
                    to_device(drawn, place)
                if place.type == "cuda":
                    torch.cuda.synchronize()
                times[name].append((clock() - began) / batch)
    click.echo(f"{side} px JPEG to 2 views of {side} px and 8 of {local} px, on {device}")
    loader = np.array(times["loader"][1:])  # the first round warms up
    for name, taken in times.items():
        each = np.array(taken[1:])
        click.echo(
            f"  {name:22} {1 / np.median(each):9.1f} images/s {np.median(each) * 1e6:8.1f} us"
            f" {np.median(loader / each):7.2f} x the loader"
        )


if __name__ == "__main__":
    main()
