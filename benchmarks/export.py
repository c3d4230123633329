"""CPU seconds of writing shards, over those of copying the same bytes.

`.venv/bin/python -m benchmarks.export` draws JPEGs and lays down what the stages before export know of
them, in the order of a hash. Then, in turns, it writes the shards, copies the crawl's tars member by
member as Python's tarfile does, and copies them as files, each to new files.
"""

from __future__ import annotations

import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from curate.forecast.exported import SIDE, draw_crawl, export, keep_all


@click.command(help=__doc__)
@click.option("--images", default=2000, show_default=True)
@click.option("--side", default=SIDE, show_default=True, help="Pixels.")
@click.option("--rounds", default=9, show_default=True)
def main(images: int, side: int, rounds: int) -> None:
    """Print for each way its CPU and clock seconds, its bytes a CPU second, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        crawl = Path(folder, "crawl")
        crawl.mkdir()
        draw_crawl(crawl, images, side)
        kept = keep_all(crawl, Path(folder, "work"))
        ways: dict[str, Callable[[Path], None]] = {
            "export": lambda out: export(kept, out),
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


def _copy_members(crawl: Path, out: Path) -> None:
    for path in sorted(crawl.iterdir()):
        with tarfile.open(path) as source, tarfile.open(out / path.name, "w") as target:
            for member in source:
                target.addfile(member, source.extractfile(member))


def _copy_files(crawl: Path, out: Path) -> None:
    for path in sorted(crawl.iterdir()):
        shutil.copyfile(path, out / path.name)


if __name__ == "__main__":
    main()
