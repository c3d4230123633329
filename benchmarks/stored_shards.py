"""Images a second of the trainer's loader from shards on S3, over those from local ones.

`python -m benchmarks.stored_shards` starts moto's server in a process of its own, which answers each
request after `--latency` seconds, as a store does, and needs the packages of the tests. The rounds
take turns. Server and loader share the machine: with few processors the ratio is a lower bound. So the
CPU seconds of a loader without workers are told too, which the server has no part in: their ratio is
that of the rates where the loader's processors are busy and the store is not. With `--workers 0` only
these are measured.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from train.data.crops import Views
from train.data.index import ShardIndex, read_index
from train.data.loader import make_loader
from train.data.order import Order
from train.data.settings import CropSettings, DataSettings

SERVER = """
import json, sys
from s3_server import serve
with serve() as made:
    made.latency = float(sys.argv[1])
    print(json.dumps(made.environment), flush=True)
    sys.stdin.read()
"""


def main() -> None:
    """Print the rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.03)
    options = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(options.latency)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": "tests"},
        text=True,
    )
    assert server.stdout is not None
    os.environ |= json.loads(server.stdout.readline())
    try:
        with tempfile.TemporaryDirectory() as folder:
            _measure(options, Path(folder))
    finally:
        server.terminate()


def _measure(options: argparse.Namespace, folder: Path) -> None:
    import fsspec

    (folder / "shards").mkdir()
    system = fsspec.filesystem("s3")
    for shard in range(options.shards):
        path = folder / "shards" / f"{shard:05d}.tar"
        _write(path, range(shard, options.images, options.shards), options.side)
        system.put_file(str(path), f"bucket/shards/{path.name}")
    places = {"local": str(folder / "shards"), "s3": "s3://bucket/shards"}
    indexes = {name: read_index(place, folder / name) for name, place in places.items()}
    units = {"CPU s of the loader": (0, time.process_time)}
    if options.workers:
        units = {"s": (options.workers, time.perf_counter), **units}
    rates: dict[str, dict[str, list[float]]] = {unit: {n: [] for n in places} for unit in units}
    for number in range(options.rounds + 1):
        for name, index in indexes.items():
            for unit, (workers, clock) in units.items():
                rate = _rate(index, options, workers, clock)
                if number:  # the first warms up
                    rates[unit][name].append(rate)
    for unit, measured in rates.items():
        for name, of in measured.items():
            print(f"{name:<6} {statistics.median(of):7.1f} images/{unit}")
        pairs = zip(measured["s3"], measured["local"], strict=True)
        ratios = [stored / local for stored, local in pairs]
        print(
            f"s3 over local: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def _rate(
    index: ShardIndex, options: argparse.Namespace, workers: int, clock: Callable[[], float]
) -> float:
    """Return the images a second of an epoch, from the first batch on, by a clock."""
    steps = options.images // options.batch
    order = Order(index.sizes, batch_size=options.batch, seed=0, window=options.shards)
    loader = make_loader(
        index,
        order,
        Views(CropSettings(), seed=0),
        settings=DataSettings(workers=workers),
        ranks=(0, 1),
        accumulate=1,
        start_step=0,
        stop_step=steps,
    )
    next(loader)  # the workers have started
    began = clock()
    count = sum(len(batch.keys) for batch in loader)
    return count / (clock() - began)


def _write(path: Path, numbers: range, side: int) -> None:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            noise = np.random.default_rng(number).normal(128, 40, (side // 4, side // 4, 3))
            image = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize((side, side))
            data = io.BytesIO()
            image.save(data, "JPEG", quality=90)
            info = tarfile.TarInfo(f"{number:09d}.jpg")
            info.size = len(data.getvalue())
            tar.addfile(info, io.BytesIO(data.getvalue()))


if __name__ == "__main__":
    main()
