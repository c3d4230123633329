"""Made-up JPEGs in tars: smooth colours with noise, the same at every call."""

from __future__ import annotations

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image


def write_shards(folder: Path, *, count: int, size: tuple[int, int], shards: int) -> Path:
    """Write `count` JPEGs of `size` = (width, height), dealt to tars `00000.tar` and so on."""
    folder.mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(lambda number: draw(number, size), range(count)))
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard, count, shards):
                member = tarfile.TarInfo(f"{number:09d}.jpg")
                member.size = len(pictures[number])
                tar.addfile(member, io.BytesIO(pictures[number]))
    return folder


def draw(number: int, size: tuple[int, int]) -> bytes:
    """Return a JPEG of random colours, smoothed, under a little noise."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
    noisy = pixels + random.normal(0, 8, pixels.shape)
    data = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()
