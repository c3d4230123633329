"""The stages behind embed at growing numbers of images: time, memory, units, recall and growth.

Synthetic vectors (`clumps.py`) with planted near-copies and planted relations to a seed go through the
project's own stages cluster, dedup, retrieve, select and report, with the inline executor and one
thread. The facts of the images are made up; nothing is embedded. Memory is what the process holds of
its own (`RssAnon`): mapped files, which the system may drop at any time, do not count.

    export OMP_NUM_THREADS=1
    nice .venv/bin/python benchmarks/million.py --images 62500 --doublings 4
    nice .venv/bin/python benchmarks/million.py --images 300000 --same --stage dedup
"""

from __future__ import annotations

import re
import resource
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import numpy as np

from curate.dedup.near import DedupSettings
from curate.dedup.stage import Deduplicated
from curate.execution.session import open_runner
from curate.forecast.made import PART, THRESHOLD, Made, catalogued, make
from curate.forecast.measure import MeasuringExecutor
from curate.forecast.stages import RELEVANT, STAGES, take_through
from curate.retrieval.nearest_seeds import Retrieved
from curate.stage import EngineSettings, Runner

SECONDS = 0.02
"""Between two looks at the memory."""


@dataclass
class Row:
    """What one stage took."""

    seconds: float = 0.0
    cpu: float = 0.0
    mebibytes: float = 0.0
    stored: int = 0
    """Bytes of the files of its units."""
    units: Counter[str] = field(default_factory=Counter)
    """By the name of the unit without its number."""


def make_same(runner: Runner, images: int, seeds: int, dim: int = 384) -> Made:
    """Make a crawl of one picture encoded again and again: cosines of 0.98 and more."""
    rng = np.random.default_rng(0)
    middle = rng.standard_normal(dim, np.float32)
    middle /= np.linalg.norm(middle)
    stored = np.empty((images + seeds, dim), np.float16)
    for at in range(0, len(stored), PART):
        some = stored[at : at + PART]
        noise = rng.standard_normal(some.shape, np.float32)
        noise *= 0.1 / np.linalg.norm(noise, axis=1, keepdims=True)
        some[:] = middle + noise
    pairs = np.stack([np.zeros(images - 1, np.int64), np.arange(1, images)], 1)
    none = np.empty((0, 2), np.int64)
    crawl = catalogued(runner, "crawl", stored[:images])
    return Made(crawl, catalogued(runner, "seed", stored[images:]), pairs, none)


def take(
    runner: Runner,
    made: Made,
    last: str,
    settings: DedupSettings,
    tell: Callable[[str, Row], None],
) -> tuple[dict[str, Row], dict[str, float]]:
    """Run the stages up to `last`; return what each took, and what was found of what is planted.

    `tell` is told of each stage when it has ended, so that a call that is cut off has said so much.
    """
    rows: dict[str, Row] = {}
    during = partial(measured, rows, work=runner.work, tell=tell)
    taken = take_through(runner, made, last, settings, during)
    recall: dict[str, float] = {}
    if taken.copies is not None:
        recall["dedup"] = _share_grouped(made, taken.copies)
    if taken.copies is not None and taken.near is not None:
        recall["retrieve"] = _share_retrieved(made, taken.copies, taken.near[0])
    return rows, recall


def _share_grouped(made: Made, copies: Deduplicated) -> float:
    """Return the share of the planted copies, of those that are still such as stored, that share a group."""
    representative = np.load(copies.groups / "representative.npy")
    one, other = made.copies.T
    stored = made.crawl.collection
    found = total = 0
    for at in range(0, len(one), PART):
        ends = one[at : at + PART], other[at : at + PART]
        a, b = (stored.vectors(each).astype(np.float64) for each in ends)
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        same = representative[ends[0]] == representative[ends[1]]
        found, total = (
            found + int(same[cosine >= THRESHOLD].sum()),
            total + int((cosine >= THRESHOLD).sum()),
        )
    return found / max(1, total)


def _share_retrieved(made: Made, copies: Deduplicated, near: Retrieved) -> float:
    """Return the share of related images that stand for their group whose nearest seed is the planted one."""
    representative = np.load(copies.groups / "representative.npy", mmap_mode="r")
    image, seed = made.related.T
    stands = representative[image] == image
    nearest = np.full(len(representative), -1, np.int64)
    for folder in near.folders:
        nearest[np.load(folder / "numbers.npy")] = np.load(folder / "seeds.npy")[:, 0]
    return float((nearest[image] == seed)[stands].mean()) if stands.any() else 1.0


@contextmanager
def measured(
    rows: dict[str, Row],
    stage: str,
    work: Path,
    tell: Callable[[str, Row], None] = lambda stage, row: None,
) -> Iterator[None]:
    """Note what happens meanwhile as the row of a stage, and tell of it."""
    before, ended, peak = set(_units(work)), threading.Event(), [own_mebibytes()]

    def look() -> None:
        while not ended.wait(SECONDS):
            peak[0] = max(peak[0], own_mebibytes())

    watch = threading.Thread(target=look)
    started, used = time.monotonic(), _used_cpu()
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
    row = Row(time.monotonic() - started, _used_cpu() - used, peak[0])
    made = {path.parent for path in set(_units(work)) - before}
    row.units.update(re.sub(r"[-\d]+$", "", unit.name) for unit in made)
    row.stored = sum(file.stat().st_size for unit in made for file in unit.iterdir())
    rows[stage] = row
    tell(stage, row)


def _tell_ended(images: int, executor: MeasuringExecutor | None, ended: str, row: Row) -> None:
    click.echo(f"{ended}: {row.cpu:.1f} CPU s, {row.mebibytes:.0f} MiB", err=True)
    for (stage, function), taken in sorted(executor.taken.items()) if executor else ():
        compared = f"  {taken.compared / images:,.0f} pairs an image" if taken.compared else ""
        click.echo(f"{stage:9s} {function:16s} {taken.units:6d} {taken.cpu_s:8.2f} CPU s{compared}")
    if executor:
        executor.taken.clear()


def _tell_again(runner: Runner, made: Made, stage: str, settings: DedupSettings) -> None:
    """Print what all stages take where everything is there, and where a threshold has changed."""
    for name, relevant, out in (("cached", RELEVANT, "out"), ("threshold", RELEVANT - 0.1, "new")):
        rows: dict[str, Row] = {}
        during = partial(measured, rows, work=runner.work)
        take_through(runner, made, stage, settings, during, relevant, out)
        seconds, cpu = (sum(getattr(row, of) for row in rows.values()) for of in ("seconds", "cpu"))
        click.echo(f"again: {name:9s} {seconds:8.1f} s {cpu:8.1f} CPU s")


def _units(work: Path) -> Iterator[Path]:
    yield from work.glob("*/*/*/unit.json")
    yield from work.glob("*/.tables/*/unit.json")


def own_mebibytes() -> float:
    """Return what this process holds of its own."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def _used_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@click.command()
@click.option("--images", default=62_500, help="Of the smallest crawl.")
@click.option("--doublings", default=0, help="How often the number of images is doubled.")
@click.option("--stage", type=click.Choice(STAGES), default=STAGES[-1], help="The last one to run.")
@click.option("--seeds", default=1_000, help="Images of the seed.")
@click.option("--same", is_flag=True, help="All images are one picture, encoded again and again.")
@click.option("--kinds", is_flag=True, help="Print what each kind of unit took, too.")
@click.option("--again", is_flag=True, help="Once more, and once with another threshold.")
@click.option("--work", type=click.Path(path_type=Path), help="Where files are built.")
def main(
    images: int,
    doublings: int,
    stage: str,
    seeds: int,
    same: bool,
    kinds: bool,
    again: bool,
    work: Path | None,
) -> None:
    """Print a line for each stage of each size, and the exponent of its growth."""
    table: dict[str, list[tuple[int, float]]] = {}
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    for count in (images * 2**step for step in range(doublings + 1)):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            home = Path(folder)
            settings = DedupSettings(max_pair_share=1.0 if same else 0.01, looks=0)
            with open_runner(home, EngineSettings(), "inline") as runner:
                measuring = MeasuringExecutor(runner.work) if kinds else None
                runner.executor = measuring or runner.executor
                made = (make_same if same else make)(runner, count, seeds)
                tell = partial(_tell_ended, count, measuring)
                rows, recall = take(runner, made, stage, settings, tell)
                if again:
                    _tell_again(runner, made, stage, settings)
        for name, row in rows.items():
            units = ", ".join(f"{kind or 'block'} {n}" for kind, n in sorted(row.units.items()))
            found = f"  recall {recall[name]:.4f}" if name in recall else ""
            click.echo(
                f"{count:>10,} {name:9s} {row.seconds:8.1f} s {row.cpu:8.1f} CPU s "
                f"{row.mebibytes:7.0f} MiB  {row.stored / 1e6:8.1f} MB stored{found}  units: {units}"
            )
            table.setdefault(name, []).append((count, row.cpu))
    for name, points in table.items():
        if len(points) > 1:
            sizes, seconds = np.log(np.array(points)).T
            click.echo(f"growth of {name}: exponent {np.polyfit(sizes, seconds, 1)[0]:.2f}")


if __name__ == "__main__":
    main()
