"""CPU seconds of writing shards, over those of copying the same bytes.

`.venv/bin/python -m benchmarks.export` draws JPEGs and lays down what the stages before export know of
them, in the order of a hash. Then, in turns, it writes the shards, copies the crawl's tars member by
member as Python's tarfile does, and copies them as files, each to new files.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
from PIL import Image

from curate.catalogue.collection import Collection
from curate.catalogue.originals import save_parts
from curate.export.bounds import ShardBounds
from curate.export.kept_facts import FILE, KEPT, gather_facts
from curate.export.shards import ExportSettings, Kept, export_shard
from curate.export.spill import Source
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.shard_folder.tar_writer import TarWriter

PART, SHARD = 500, 1000
"""Images of one."""


@click.command(help=__doc__)
@click.option("--images", default=2000, show_default=True)
@click.option("--side", default=384, show_default=True, help="Pixels.")
@click.option("--rounds", default=9, show_default=True)
def main(images: int, side: int, rounds: int) -> None:
    """Print for each way its CPU and clock seconds, its bytes a CPU second, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        crawl = Path(folder, "crawl")
        crawl.mkdir()
        draw_crawl(crawl, images, side)
        kept = keep_all(crawl, Path(folder, "work"))
        ways: dict[str, Callable[[Path], None]] = {
            "export": lambda out: _export(kept, out),
            "tarfile": lambda out: _copy_members(crawl, out),
            "files": lambda out: _copy_files(crawl, out),
        }
        taken: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
        for number in range(rounds + 1):
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
    rates = {name: [size / 1e6 / cpu for cpu, _, size in took] for name, took in taken.items()}
    for name, took in taken.items():
        cpu, clock, size = (statistics.median(values) for values in zip(*took, strict=True))
        click.echo(
            f"{name:<8} {size / 1e6:6.1f} MB: {cpu:.3f} CPU s, {clock:.3f} s, "
            f"{statistics.median(rates[name]):6.0f} MB a CPU s, {cpu / images * 1e3:.3f} ms an image"
        )
    for other in ("tarfile", "files"):
        ratios = sorted(x / y for x, y in zip(rates["export"], rates[other], strict=True))
        middle = statistics.median(ratios)
        click.echo(f"export over {other}: {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def draw_crawl(crawl: Path, images: int, side: int) -> None:
    """Write tars of drawn JPEGs, `PART` in each."""
    for start in range(0, images, PART):
        with (crawl / f"{start:06d}.tar").open("wb") as file:
            tar = TarWriter(file)
            for number in range(start, min(start + PART, images)):
                tar.add(f"{number:06d}.jpg", _draw(number, side))
            tar.close()


def keep_all(crawl: Path, work: Path) -> Kept:
    """Lay down what the stages before export would, had they kept every image of a crawl."""
    parts = list_parts("crawl", DatasetSettings(path=str(crawl)))
    rows = [row for part in parts for row in _facts(part.name, Path(part.root, part.paths[0]))]
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    for position, number in enumerate(order):
        rows[number] |= {"position": position, "number": number}
    home, laid = work / "collection", work / "facts"
    for made in (home, laid, work / "sorted"):
        made.mkdir(parents=True)
    sizes = [sum(row["part"] == part.name for row in rows) for part in parts]
    np.save(home / "starts.npy", np.cumsum([0, *sizes]))
    np.save(work / "edges.npy", [*range(0, len(rows), SHARD), len(rows)])
    table = pa.Table.from_pylist([rows[number] for number in order], schema=KEPT)
    with pa.ipc.new_file(str(work / "sorted" / FILE), KEPT) as writer:
        writer.write_table(table)
    gather_facts([work / "sorted"], 0, len(rows), out=laid)
    listed = save_parts(parts, work / "parts.json")
    source = Source(Collection(home), listed, work / "position.npy", 0, {})
    bounds = ShardBounds(work / "edges.npy")
    return Kept((source,), bounds, (laid,), len(bounds), 178_956_970)


def _facts(part: str, path: Path) -> Iterator[dict[str, Any]]:
    with tarfile.open(path) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None  # all are files
            data = stream.read()
            width, height = Image.open(io.BytesIO(data)).size
            yield {
                "source": 0,
                "key": f"{part}/{member.name.removesuffix('.jpg')}",
                "part": part,
                "member": member.name,
                "url": f"https://example.org/{part}/{member.name}",
                "sha256": hashlib.sha256(data).hexdigest(),
                "width": width,
                "height": height,
                "format": "jpeg",
                "bytes": len(data),
                "offset": member.offset_data,
                "nearest_seed": f"seed/{member.name}",
                "seed_similarity": 0.7,
            }


def _export(kept: Kept, out: Path) -> None:
    for shard in range(len(kept.bounds)):
        export_shard(kept, shard, ExportSettings(shard_size=SHARD), out=out)


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
