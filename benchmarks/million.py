"""The stages behind embed at growing numbers of images: time, memory, units, recall and growth.

Synthetic vectors (`clumps.py`) with planted near-copies and planted relations to a seed go through the
project's own stages cluster, dedup, retrieve, select and report, with the inline executor and one
thread. The facts of the images are made up; nothing is embedded. Memory is what the process holds of
its own (`RssAnon`): mapped files, which the system may drop at any time, do not count.

    export OMP_NUM_THREADS=1
    nice .venv/bin/python benchmarks/million.py --images 62500 --doublings 4
    nice .venv/bin/python benchmarks/million.py --images 300000 --same --stage dedup
    nice .venv/bin/python benchmarks/million.py --again

`--again` goes on with the same work folder: all stages once more, as a second call of a run has them,
and then with another threshold of retrieval, into another folder.
"""

from __future__ import annotations

import hashlib
import re
import resource
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clumps import clumps

from curate.calibration.thresholds import Threshold
from curate.catalogue.collection import Catalogued, Collection, PartOutputs, catalogue
from curate.catalogue.part_files import COLUMNS, FACTS, ROW_GROUP, VALID, VECTORS
from curate.dedup.bar import Bar
from curate.dedup.chains import Dropped
from curate.dedup.holdout import Held
from curate.dedup.near import DedupSettings
from curate.dedup.stage import Deduplicated, dedup
from curate.execution.session import open_runner
from curate.export.bounds import bound_shards
from curate.filters.quality import QualitySettings
from curate.neighbours.cluster import Clustered, ClusterSettings, cluster
from curate.report.pairs import Pool
from curate.report.rows import Decided
from curate.report.settings import ReportSettings
from curate.report.stage import write_pairs, write_tables
from curate.retrieval.answers import Answers, ask_seeds
from curate.retrieval.nearest_seeds import Retrieved, retrieve
from curate.retrieval.settings import SeedSettings
from curate.selection.balance import Balanced
from curate.selection.decide import decide
from curate.selection.include import Included
from curate.stage import EngineSettings, Runner
from shared.datasets import Part
from shared.storage import link_or_copy

STAGES = ("cluster", "dedup", "retrieve", "select", "report", "pairs")
PART = 10_000
"""Images of a part: a shard of img2dataset."""
THRESHOLD = 0.9
RELEVANT = 0.5
SECONDS = 0.02
"""Between two looks at the memory."""


@dataclass(frozen=True)
class Made:
    """A crawl and a seed with known relations."""

    crawl: Catalogued
    seed: Catalogued
    copies: np.ndarray
    """int64 [p, 2]: numbers of crawled images that are near-copies."""
    related: np.ndarray
    """int64 [s, 2]: a crawled image, and the seed image that it is a near-copy of."""


@dataclass
class Row:
    """What one stage took."""

    seconds: float = 0.0
    cpu: float = 0.0
    mebibytes: float = 0.0
    units: Counter[str] = field(default_factory=Counter)
    """By the name of the unit without its number."""


@dataclass(frozen=True)
class Tables:
    """Where the report goes; all below one folder."""

    home: Path

    @property
    def reports(self) -> Path:
        """Of the tables."""
        return self.home / "reports"

    @property
    def tables(self) -> Path:
        """Of their units."""
        return self.home / ".tables"

    @property
    def scratch(self) -> Path:
        """Of units at work."""
        return self.home / ".scratch"

    def lay_tables(self, names: Iterable[str], units: list[Path], into: Path) -> None:
        """Link the units' tables."""
        for name in names:
            for unit in units:
                file = into / f"{name}.parquet" / f"{unit.name}.parquet"
                link_or_copy(unit / f"{name}.parquet", file)


def make(work: Path, images: int, seeds: int) -> Made:
    """Make a crawl of `images` in which every 20th is in a planted pair, and a seed of it."""
    vectors, pairs = clumps(images + seeds, planted=images // 20 + seeds, threshold=THRESHOLD)
    of_seed = pairs[-seeds:, 1]
    in_crawl = np.ones(len(vectors), bool)
    in_crawl[of_seed] = False
    number = np.cumsum(in_crawl) - 1
    order = np.sort(of_seed)
    related = np.stack([number[pairs[-seeds:, 0]], np.searchsorted(order, of_seed)], 1)
    stored = vectors.astype(np.float16)
    del vectors
    crawl = catalogued(work, "crawl", stored[in_crawl])
    seed = catalogued(work, "seed", stored[order])
    return Made(crawl, seed, number[pairs[:-seeds]], related)


def make_same(work: Path, images: int, seeds: int, dim: int = 384) -> Made:
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
    crawl = catalogued(work, "crawl", stored[:images])
    return Made(crawl, catalogued(work, "seed", stored[images:]), pairs, none)


def catalogued(work: Path, name: str, stored: np.ndarray) -> Catalogued:
    """Return a dataset with these vectors, whose image number n has the n-th, and made-up facts."""
    outputs, parts = [], []
    for at in range(0, len(stored), PART):
        part = f"{at // PART:06d}"
        folder = work / "made" / name / part
        folder.mkdir(parents=True)
        own = stored[at : at + PART]
        np.save(folder / VECTORS, own)
        np.save(folder / VALID, np.ones(len(own), bool))
        facts = _facts(name, at, len(own))
        pq.write_table(facts, folder / FACTS, row_group_size=ROW_GROUP, compression="zstd")
        place = str(folder.relative_to(work))
        outputs.append(PartOutputs(part, "", place, None, place, False))
        parts.append(Part(part, "tar", "/nowhere", (f"{part}.tar",), (0,), None, "0" * 32, 0))
    home = work / "catalogue" / name / "all"
    home.mkdir(parents=True)
    catalogue(outputs, work, QualitySettings(), [], out=home)
    address = hashlib.sha256(f"{name}{len(stored)}".encode()).hexdigest()[:16]
    return Catalogued(name, parts, Collection(home), address)


def _facts(name: str, start: int, count: int) -> pa.Table:
    sides = np.random.default_rng(start).integers(200, 800, (count, 2), np.int32)
    rows = range(start, start + count)
    values = {
        "name": [f"{start // PART:06d}/{row:09d}" for row in rows],
        "member": [f"{row:09d}.jpg" for row in rows],
        "url": [f"https://example.org/{name}/{row}.jpg" for row in rows],
        "caption": [f"picture {row}" for row in rows],
        "sha256": [hashlib.sha256(f"{name}{row}".encode()).hexdigest() for row in rows],
        "width": sides[:, 0],
        "height": sides[:, 1],
        "format": ["jpeg"] * count,
        "bytes": sides.prod(1, dtype=np.int64) // 8,
        "offset": np.arange(count) * 65_536,
        "problem": [""] * count,
        "contrast": np.full(count, 50, np.float32),
    }
    return pa.table(values, COLUMNS)


def take_through(
    made: Made,
    work: Path,
    last: str,
    settings: DedupSettings,
    relevant: float = RELEVANT,
    out: str = "out",
) -> tuple[dict[str, Row], dict[str, float]]:
    """Run the stages up to `last`; return what each took, and what was found of what is planted."""
    rows: dict[str, Row] = {}
    recall: dict[str, float] = {}
    wanted = STAGES[: STAGES.index(last) + 1]
    with open_runner(work, EngineSettings(), "inline") as runner:
        with measured(rows, "cluster", work):
            clustered = cluster(runner, made.crawl, ClusterSettings(), 1, None)
        if "dedup" in wanted:
            with measured(rows, "dedup", work):
                copies = dedup(
                    runner, made.crawl, clustered, Bar(THRESHOLD, THRESHOLD), settings, 0, 1
                )
            recall["dedup"] = _share_grouped(made, copies)
        if "retrieve" in wanted:
            with measured(rows, "retrieve", work):
                where = (copies.groups, copies.address)
                near = retrieve(runner, made.crawl, *where, [made.seed], 5, 1)
            recall["retrieve"] = _share_retrieved(made, copies, near[0])
        if "select" in wanted:
            with measured(rows, "select", work), runner.at_work("select"):
                answers, selected = select(runner, made, copies, near, relevant)
        if "report" in wanted:
            with measured(rows, "report", work), runner.at_work("report"):
                report(runner, made, work / out, clustered, copies, answers, selected)
        if "pairs" in wanted:
            with measured(rows, "pairs", work), runner.at_work("report"):
                list_pairs(runner, made, work, clustered, copies, selected, settings)
    return rows, recall


def list_pairs(
    runner: Runner,
    made: Made,
    work: Path,
    clustered: Clustered,
    copies: Deduplicated,
    selected: Any,
    settings: DedupSettings,
) -> None:
    """List the pairs down to a floor, and group the images anew by other thresholds."""
    pool = Pool(
        *(made.crawl.collection, clustered.clusters, copies.ranks, copies.groups, None),
        *(selected.folder, copies.bar, settings, ReportSettings().pairs, 1),
    )
    write_pairs(runner, Tables(work / "out"), pool)


def select(
    runner: Runner,
    made: Made,
    copies: Deduplicated,
    near: tuple[Retrieved, ...],
    relevant: float,
) -> tuple[Answers, Any]:
    """Decide about every image, by a threshold."""
    answers = ask_seeds(
        *(runner, made.crawl, [made.seed], near, [SeedSettings()]),
        *([Threshold(relevant, "pipeline")], copies.groups, Dropped(), Held()),
        *(ClusterSettings(), 5, 1),
    )
    whole = (copies.groups, Dropped(), answers, Included(), None, Balanced(), None, 0)
    return answers, decide(runner, made.crawl, *whole)


def report(
    runner: Runner,
    made: Made,
    out: Path,
    clustered: Clustered,
    copies: Deduplicated,
    answers: Answers,
    selected: Any,
) -> None:
    """Write the tables of all images below `out`."""
    folders = Tables(out)
    for folder in (folders.reports, folders.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    crawl, scratch = made.crawl.collection, runner.scratch / "bounds.npy"
    bounds = bound_shards(scratch, [crawl], selected.folder, selected.exported, 1_000, None)
    none: dict[str, Any] = dict.fromkeys(("holdouts", "filters", "lists", "removed"), ())
    decided = Decided(
        **none,
        crawl=crawl,
        answers=answers,
        assigned=clustered.assigned,
        groups=copies.groups,
        grouping="greedy",
        shapes=copies.shapes,
        dropped=None,
        included=Included(),
        selected=selected.folder,
        quality=QualitySettings(),
        dedup_threshold=THRESHOLD,
        max_images=None,
        bounds=bounds,
    )
    write_tables(runner, folders, decided)


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
        is_copy = cosine >= THRESHOLD
        same = representative[ends[0]] == representative[ends[1]]
        found, total = found + int((same & is_copy).sum()), total + int(is_copy.sum())
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
def measured(rows: dict[str, Row], stage: str, work: Path) -> Iterator[None]:
    """Note what happens meanwhile as the row of a stage."""
    before, ended, peak = set(_units(work)), threading.Event(), [_own_mebibytes()]

    def look() -> None:
        while not ended.wait(SECONDS):
            peak[0] = max(peak[0], _own_mebibytes())

    watch = threading.Thread(target=look)
    started, used = time.monotonic(), _cpu_seconds()
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()
    row = Row(time.monotonic() - started, _cpu_seconds() - used, peak[0])
    row.units.update(
        re.sub(r"[-\d]+$", "", path.parent.name) for path in set(_units(work)) - before
    )
    rows[stage] = row


def _tell_again(made: Made, home: Path, stage: str, settings: DedupSettings) -> None:
    """Print what all stages take where everything is there, and where a threshold has changed."""
    for name, relevant, out in (("cached", RELEVANT, "out"), ("threshold", RELEVANT - 0.1, "new")):
        rows, _ = take_through(made, home, stage, settings, relevant, out)
        seconds, cpu = (sum(getattr(row, of) for row in rows.values()) for of in ("seconds", "cpu"))
        click.echo(f"again: {name:9s} {seconds:8.1f} s {cpu:8.1f} CPU s")


def _units(work: Path) -> Iterator[Path]:
    yield from work.glob("*/*/*/unit.json")
    yield from work.glob("*/.tables/*/unit.json")


def _own_mebibytes() -> float:
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@click.command()
@click.option("--images", default=62_500, help="Of the smallest crawl.")
@click.option("--doublings", default=0, help="How often the number of images is doubled.")
@click.option("--stage", type=click.Choice(STAGES), default=STAGES[-1], help="The last one to run.")
@click.option("--seeds", default=1_000, help="Images of the seed.")
@click.option("--same", is_flag=True, help="All images are one picture, encoded again and again.")
@click.option("--again", is_flag=True, help="Once more, and once with another threshold.")
@click.option("--work", type=click.Path(path_type=Path), help="Where files are built.")
def main(
    images: int,
    doublings: int,
    stage: str,
    seeds: int,
    same: bool,
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
            made = (make_same if same else make)(home, count, seeds)
            settings = DedupSettings(max_pair_share=1.0 if same else 0.01, looks=0)
            rows, recall = take_through(made, home, stage, settings)
            if again:
                _tell_again(made, home, stage, settings)
        for name, row in rows.items():
            units = ", ".join(f"{kind or 'block'} {n}" for kind, n in sorted(row.units.items()))
            found = f"  recall {recall[name]:.4f}" if name in recall else ""
            click.echo(
                f"{count:>10,} {name:9s} {row.seconds:8.1f} s {row.cpu:8.1f} CPU s "
                f"{row.mebibytes:7.0f} MiB{found}  units: {units}"
            )
            table.setdefault(name, []).append((count, row.cpu))
    for name, points in table.items():
        if len(points) > 1:
            sizes, seconds = np.log(np.array(points)).T
            click.echo(f"growth of {name}: exponent {np.polyfit(sizes, seconds, 1)[0]:.2f}")


if __name__ == "__main__":
    main()
