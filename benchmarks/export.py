"""CPU seconds of writing shards, over those of copying the same bytes.

`PYTHONPATH=tests:tests/curate .venv/bin/python -m benchmarks.export` takes drawn JPEGs through the stages
by the tests' embedder of colours, and then, in turns, writes the shards, copies the crawl's tars as
files, and copies them member by member as Python's tarfile does, each to new files.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import test_export
from pictures import write_tar
from PIL import Image

from curate.export.shards import ExportSettings, Kept, export_shard


def main() -> None:
    """Print for each way the CPU and clock seconds and the bytes a CPU second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    grouped = test_export.grouped
    test_export.grouped = lambda crawl, clusters, work, _: grouped(crawl, clusters, work, 1.0)
    with tempfile.TemporaryDirectory() as folder:
        crawl, work = Path(folder, "crawl"), Path(folder, "work")
        crawl.mkdir()
        work.mkdir()
        for start in range(0, options.images, 500):
            numbers = range(start, min(start + 500, options.images))
            members = {f"{number:06d}.jpg": _draw(number, options.side) for number in numbers}
            write_tar(crawl / f"{start:06d}.tar", members)
        settings = ExportSettings(shard_size=1000)
        kept, _ = test_export.kept_of(work, crawl, settings)
        ways: dict[str, Callable[[Path], None]] = {
            "export": lambda out: _export(kept, settings, out),
            "tarfile": lambda out: _copy_members(crawl, out),
            "files": lambda out: _copy_files(crawl, out),
        }
        taken: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
        for number in range(options.rounds + 1):
            for name, way in ways.items():
                out = Path(folder, f"{name}-{number}")
                out.mkdir()
                cpu, clock = time.process_time(), time.perf_counter()
                way(out)
                cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
                if number:  # the first warms up
                    size = sum(path.stat().st_size for path in out.glob("*.tar"))
                    taken[name].append((cpu, clock, size))
                shutil.rmtree(out)
    print(f"{options.images} images, of which {int(kept.bounds.edges[-1])} are kept")
    for name, rounds in taken.items():
        cpu, clock, size = (statistics.median(values) for values in zip(*rounds, strict=True))
        print(
            f"{name:<8} {size / 1e6:6.1f} MB: {cpu:.3f} CPU s, {clock:.3f} s, "
            f"{size / 1e6 / cpu:6.0f} MB a CPU s"
        )


def _export(kept: Kept, settings: ExportSettings, out: Path) -> None:
    for shard in range(len(kept.bounds)):
        export_shard(kept, shard, settings, out=out)


def _copy_members(crawl: Path, out: Path) -> None:
    for path in sorted(crawl.iterdir()):
        with tarfile.open(path) as source, tarfile.open(out / path.name, "w") as target:
            for member in source:
                target.addfile(member, source.extractfile(member))


def _copy_files(crawl: Path, out: Path) -> None:
    for path in sorted(crawl.iterdir()):
        shutil.copyfile(path, out / path.name)


def _draw(number: int, side: int) -> bytes:
    random = np.random.default_rng(number)
    noise = random.normal(random.uniform(40, 215, 3), 40, (side // 4, side // 4, 3))
    data = io.BytesIO()
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize((side, side))
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


if __name__ == "__main__":
    main()
