"""Holds all images of a dataset, decoded, in the memory of the training device."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from shared.errors import LvdError
from shared.pictures.images import ImageError
from shared.progress import stage_bar
from shared.send import send
from train.data.crops import GLOBAL_VIEWS, Draws
from train.data.device_crops import resized_crops
from train.data.index import SampleIndex
from train.data.pictures import picture
from train.data.settings import CropSettings
from train.data.workers import made_by_workers
from train.distributed.ranks import Ranks

_SHARE = 0.8
"""Of the free memory that the images may take; the rest is for the steps."""
_READ_AT_ONCE = 64
_PROBED = 64
"""Images by whose sizes the whole is guessed before it is decoded."""
_VALUES_AT_ONCE = {"cpu": 1_000_000, "cuda": 20_000_000}
"""Numbers of the largest tensor of `cut`: what the caches, or some of a card's memory, hold."""


class ResidentImages:
    """All images of a dataset in one flat tensor on a device: planes of red, green and blue."""

    def __init__(
        self, pixels: UInt8[Tensor, " bytes"], shapes: NDArray[np.int32], broken: dict[int, str]
    ) -> None:
        """Take the pixels of image after image, and of each its height and width, 0 for none."""
        self.pixels = pixels
        self.shapes = shapes
        """[images, 2]"""
        self.broken = broken
        """The reason for each image that could not be read or decoded."""
        sizes = _sizes(shapes)
        self._starts = np.cumsum(sizes) - sizes

    def cut(
        self, samples: NDArray[np.int64], draws: Draws, settings: CropSettings
    ) -> tuple[UInt8[Tensor, "m 3 g g"], UInt8[Tensor, "k 3 l l"]]:
        """Return the global and the local crops of n whole images by their draws, crop-major.

        Colours and sharpness are as they were: see `train.data.crops.finish_views`.
        """
        count, views = draws.flips.shape
        boxes, flips = self._on_device(draws.boxes), self._on_device(draws.flips)
        kinds = (
            (slice(0, GLOBAL_VIEWS), settings.global_size),
            (slice(GLOBAL_VIEWS, views), settings.local_size),
        )
        crops = [
            self.pixels.new_empty(of.stop - of.start, count, 3, size, size) for of, size in kinds
        ]
        height, width = self.shapes[samples].max(0).tolist()
        widest = max((of.stop - of.start) * size for of, size in kinds)
        largest = max(3 * height * width, widest * max(3 * height, width))
        at_once = max(1, _VALUES_AT_ONCE[self.pixels.device.type] // largest)
        for start in range(0, count, at_once):
            some = slice(start, start + at_once)
            images = self.take(samples[some])
            for made, (of, size) in zip(crops, kinds, strict=True):
                if len(made):
                    made[:, some] = resized_crops(
                        images, boxes[some, of], flips[some, of], size, settings.interpolation
                    ).unflatten(0, (len(made), -1))
        return crops[0].flatten(0, 1), crops[1].flatten(0, 1)

    def take(self, samples: NDArray[np.int64]) -> UInt8[Tensor, "n 3 h w"]:
        """Return whole images, each at the top left of the largest height and width among them.

        What lies beside a smaller one is not defined.
        """
        shapes, starts = self.shapes[samples].astype(np.int64), self._starts[samples]
        height, width = shapes.max(0).tolist()
        if (shapes == shapes[0]).all() and not len(self.pixels) % (3 * height * width):
            rows = self.pixels.view(-1, 3, height, width)
            if not (starts % rows[0].numel()).any():
                return rows.index_select(0, self._on_device(starts // rows[0].numel()))
        high, wide, first = (
            self._on_device(of).view(-1, 1, 1, 1) for of in (*shapes.T.copy(), starts)
        )
        plane, row, column = (
            torch.arange(of, device=self.pixels.device) for of in (3, height, width)
        )
        lines = (plane[:, None] * high[..., 0] + row) * wide[..., 0] + first[..., 0]
        places = lines[..., None] + column
        return self.pixels[places.clamp_max_(len(self.pixels) - 1)]

    def _on_device(self, values: np.ndarray) -> Tensor:
        return send(torch.from_numpy(values), self.pixels.device)


def read_resident(
    index: SampleIndex, reduce_to: int | None, *, workers: int, prefetch: int, ranks: Ranks
) -> ResidentImages:
    """Return all images of `index`, decoded as `train.data.pictures.picture` does, on the device.

    Every process holds all of them, because any sample may be drawn by any process, but decodes
    only its share, by `workers` processes of its own, and gets the others' from them. While they
    are read, a process keeps its share in its own memory too. Raises LvdError, in one line, where
    they do not fit in the memory that is free.
    """
    _refuse_too_large(resident_bytes(index, reduce_to), len(index), ranks.device)
    bounds = np.linspace(0, len(index), ranks.world + 1).astype(int)
    shares = [range(*pair) for pair in itertools.pairwise(bounds)]
    blocks = _read(index, reduce_to, shares[ranks.rank], workers, prefetch, ranks)
    of_all = _gather([(block.shapes, block.broken) for block in blocks], ranks)
    known = [block for of_rank in of_all for block in of_rank]
    shapes = np.concatenate([shapes for shapes, _ in known])
    broken = {number: reason for _, some in known for number, reason in some.items()}
    sizes = _sizes(shapes)
    _refuse_too_large(int(sizes.sum()), len(index), ranks.device)
    pixels = torch.empty(int(sizes.sum()), dtype=torch.uint8, device=ranks.device)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    start = int(ends[shares[ranks.rank].start])
    blocks.reverse()
    while blocks:  # each is let go of once it is copied
        block = blocks.pop()
        pixels[start : start + len(block.pixels)] = block.pixels
        start += len(block.pixels)
    for rank, share in enumerate(shares):
        of_share = pixels[ends[share.start] : ends[share.stop]]
        if ranks.world > 1 and len(of_share):
            dist.broadcast(of_share, rank)
    return ResidentImages(pixels, shapes, broken)


def resident_bytes(index: SampleIndex, reduce_to: int | None) -> int:
    """Return about how many bytes all images take, decoded, by some of them spread evenly."""
    chosen = np.linspace(0, len(index) - 1, min(_PROBED, len(index))).astype(int)
    block = _decode(index, reduce_to, chosen.tolist())
    return round(len(block.pixels) / len(chosen) * len(index))


@dataclass
class _Block:
    """Consecutive images, decoded, one after the other."""

    pixels: UInt8[Tensor, " bytes"]
    shapes: NDArray[np.int32]
    broken: dict[int, str]


@dataclass
class _Blocks(Dataset[Any]):
    index: SampleIndex
    reduce_to: int | None
    samples: range

    def __len__(self) -> int:
        return -(-len(self.samples) // _READ_AT_ONCE)

    def __getitem__(self, number: int) -> _Block:
        some = self.samples[number * _READ_AT_ONCE : (number + 1) * _READ_AT_ONCE]
        return _decode(self.index, self.reduce_to, some)


def _decode(index: SampleIndex, reduce_to: int | None, samples: Sequence[int]) -> _Block:
    shapes = np.zeros((len(samples), 2), np.int32)
    images: list[Tensor] = []
    broken: dict[int, str] = {}
    for row, data in enumerate(index.read_each(samples)):
        try:
            if isinstance(data, ImageError):
                raise data
            image = picture(data, reduce_to)
        except ImageError as error:
            broken[samples[row]] = str(error)
            continue
        shapes[row] = image.shape[1:]
        images.append(image.flatten())
    pixels = torch.cat(images) if images else torch.empty(0, dtype=torch.uint8)
    return _Block(pixels, shapes, broken)


def _read(
    index: SampleIndex,
    reduce_to: int | None,
    samples: range,
    workers: int,
    prefetch: int,
    ranks: Ranks,
) -> list[_Block]:
    made = made_by_workers(_Blocks(index, reduce_to, samples), workers=workers, prefetch=prefetch)
    blocks: list[_Block] = []
    if not ranks.first:
        return [_own(block) for block in made]
    with stage_bar("decode", len(samples), "images") as bar:
        for block in made:
            blocks.append(_own(block))
            bar.advance(len(block.shapes))
    return blocks


def _own(block: _Block) -> _Block:
    """Return a copy outside the shared memory by which workers send, which may be small."""
    return _Block(block.pixels.clone(), block.shapes, block.broken)


def _gather(mine: list[Any], ranks: Ranks) -> list[list[Any]]:
    if ranks.world == 1:
        return [mine]
    of_all: list[list[Any]] = [[]] * ranks.world
    dist.all_gather_object(of_all, mine)
    return of_all


def _sizes(shapes: NDArray[np.int32]) -> NDArray[np.int64]:
    return 3 * shapes.astype(np.int64).prod(1)


def _refuse_too_large(needed: int, images: int, device: torch.device) -> None:
    free = _free_memory(device)
    if needed > _SHARE * free:
        raise LvdError(
            f"data.resident needs {needed / 1e9:.2f} GB of {device} for {images:,} images, and "
            f"{_SHARE:.0%} of the {free / 1e9:.2f} GB that are free are {_SHARE * free / 1e9:.2f}: "
            "set data.resident=false (and crops.device=gpu), or train on fewer or smaller images"
        )


def _free_memory(device: torch.device) -> int:
    """Return the free bytes of a device, for one of the machine's processes where they share it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert available is not None  # Linux says it
    return int(available[1]) * 1024 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
