"""What 100 to 1,000 shards cost the trainer before its first batch, and a worker in memory.

`.venv/bin/python -m benchmarks.many_shards` writes tars of small JPEGs that no Parquet file describes, so
that each header is read, and says by their number: the seconds (CPU and clock) of listing them, of
opening the list again and of the first batch of fresh workers, and a worker's memory after some batches.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.memory import descendants, mebibytes
from train.data.crops import Views
from train.data.index import read_index
from train.data.loader import make_loader
from train.data.order import Order
from train.data.settings import CropSettings, DataSettings

DRAWN = 64
BATCH = 64
BATCHES = 60


def main() -> None:
    """Print a line for each number of shards, each measured by a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--images", type=int, default=200, help="of a shard")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        _measure(Path(options.folder), options.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        drawn = [_draw(number) for number in range(DRAWN)]
        for count in options.shards:
            place = Path(folder, str(count))
            (place / "shards").mkdir(parents=True)
            for shard in range(count):
                _write(place / "shards" / f"{shard:05d}.tar", drawn, shard, options.images)
            print(f"{count} shards of {options.images} images", flush=True)
            own = ["--folder", str(place), "--workers", str(options.workers)]
            command = [sys.executable, "-m", "benchmarks.many_shards", *own]
            subprocess.run(command, check=True)


def _measure(folder: Path, workers: int) -> None:
    for title in ("list", "open again"):
        with _timed(title):
            index = read_index(str(folder / "shards"), folder)
    order = Order(index.sizes, batch_size=BATCH, seed=0, window=DataSettings().window)
    with _timed("first batch"):
        loader = make_loader(
            index,
            order,
            Views(CropSettings(global_size=64, local_size=32), seed=0),
            settings=DataSettings(workers=workers),
            ranks=(0, 1),
            accumulate=1,
            start_step=0,
            stop_step=BATCHES,
        )
        next(loader)
    for _ in islice(loader, BATCHES - DataSettings().prefetch * workers - 2):
        pass
    busy = sorted(descendants(os.getpid()), key=lambda pid: mebibytes(pid, "smaps_rollup", "Rss"))
    for pid in busy[-workers:]:
        fields = ("Rss", "Pss", "Private_Dirty")
        said = (f"{name} {mebibytes(pid, 'smaps_rollup', name):.0f}" for name in fields)
        print(f"  a worker: MiB {', '.join(said)}")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  the training process: MiB at most {own:.0f}", flush=True)


@contextmanager
def _timed(title: str) -> Iterator[None]:
    clock, cpu = time.perf_counter(), time.process_time()
    yield
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    print(f"  {title}: {cpu:.2f} CPU s here, {clock:.2f} s", flush=True)


def _draw(number: int) -> bytes:
    noise = np.random.default_rng(number).normal(128, 40, (16, 16, 3)).clip(0, 255)
    data = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).resize((96, 96)).save(data, "JPEG", quality=90)
    return data.getvalue()


def _write(path: Path, drawn: list[bytes], shard: int, images: int) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(shard * images, (shard + 1) * images):
            info = tarfile.TarInfo(f"{number:09d}.jpg")
            info.size = len(data := drawn[number % DRAWN])
            tar.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    main()
