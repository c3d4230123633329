"""The stages behind embed, as a run has them, on a made-up crawl."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from curate.calibration.thresholds import Threshold
from curate.catalogue.originals import save_parts
from curate.dedup.bar import Bar
from curate.dedup.chains import Dropped
from curate.dedup.holdout import Held
from curate.dedup.near import DedupSettings
from curate.dedup.stage import Deduplicated, dedup
from curate.export.bounds import bound_shards
from curate.export.shards import lay_facts
from curate.export.spill import Source
from curate.filters.quality import QualitySettings
from curate.forecast.made import THRESHOLD, Made
from curate.neighbours.cluster import Clustered, ClusterSettings, cluster
from curate.report.pairs import Pool
from curate.report.rows import Decided
from curate.report.settings import ReportSettings
from curate.report.stage import write_pairs, write_tables
from curate.retrieval.answers import Answers, ask_seeds
from curate.retrieval.nearest_seeds import NearestSeeds, Retrieved, retrieve
from curate.retrieval.settings import SeedSettings
from curate.selection.balance import Balanced
from curate.selection.decide import Selected, decide
from curate.selection.include import Included
from curate.stage import Runner
from shared.storage.files import link_or_copy

STAGES = ("cluster", "dedup", "retrieve", "select", "report", "pairs")
RELEVANT = 0.5
TOP_K = 5
SHARD = 1_000
"""Images of one."""
BAR = Bar(THRESHOLD, THRESHOLD)


@dataclass
class Taken:
    """What the stages found that a benchmark compares with what is planted; None: not run."""

    copies: Deduplicated | None = None
    near: tuple[Retrieved, ...] | None = None


class Tables:
    """Where the report goes; all below one folder."""

    def __init__(self, home: Path) -> None:
        self.reports, self.tables = home / "reports", home / ".tables"
        self.scratch = home / ".scratch"

    def lay_tables(self, names: Iterable[str], units: list[Path], into: Path) -> None:
        """Link the units' tables."""
        for name in names:
            for unit in units:
                file = into / f"{name}.parquet" / f"{unit.name}.parquet"
                link_or_copy(unit / f"{name}.parquet", file)


class Shards:
    """Where shards would be built; all below one folder, and what is known of the images by `name`."""

    def __init__(self, home: Path, name: str) -> None:
        self.shards, self.spill, self.scratch = home / "shards", home / name, home / ".scratch"
        for folder in (self.spill, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)

    def lay_shards(self, names: Iterable[str]) -> None:
        """Leave them where they are."""


def take_through(
    runner: Runner,
    made: Made,
    last: str,
    settings: DedupSettings,
    during: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext(),
    relevant: float = RELEVANT,
    out: str = "out",
    cut: ClusterSettings | None = None,
) -> Taken:
    """Run the stages up to `last`, each within `during` of its name; return what they found.

    `relevant` is the threshold of retrieval. The report goes to `out` in the work folder. `cut` is how
    the crawl is cut into clusters, by default as any.
    """
    wanted, taken = STAGES[: STAGES.index(last) + 1], Taken()
    with during("cluster"):
        clustered = cluster(runner, made.crawl, cut or ClusterSettings(), 1, None)
    if "dedup" not in wanted:
        return taken
    with during("dedup"):
        taken.copies = copies = dedup(runner, made.crawl, clustered, BAR, settings, 0, 1)
    if "retrieve" not in wanted:
        return taken
    with during("retrieve"):
        where = (copies.groups, copies.address)
        taken.near = near = retrieve(runner, made.crawl, *where, [made.seed], TOP_K, 1)
    if "select" not in wanted:
        return taken
    with during("select"), runner.at_work("select"):
        answers, selected = select(runner, made, copies, near, relevant)
    if "report" in wanted:
        with during("report"), runner.at_work("report"):
            folders = report(runner, made, runner.work / out, clustered, copies, answers, selected)
    if "pairs" in wanted:
        with during("pairs"), runner.at_work("report"):
            pool = Pool(
                *(made.crawl.collection, clustered.clusters, copies.ranks, copies.groups, None),
                *(selected.folder, copies.bar, settings, ReportSettings().pairs, 1),
            )
            write_pairs(runner, folders, pool)
    return taken


def select(
    runner: Runner,
    made: Made,
    copies: Deduplicated,
    near: tuple[Retrieved, ...],
    relevant: float,
) -> tuple[Answers, Selected]:
    """Decide about every image, by a threshold."""
    answers = ask_seeds(
        *(runner, made.crawl, [made.seed], near, [SeedSettings()]),
        *([Threshold(relevant, "pipeline")], copies.groups, Dropped(), Held()),
        *(ClusterSettings(), TOP_K, 1),
    )
    whole = (copies.groups, Dropped(), answers, Included(), None, Balanced(), None, 0)
    return answers, decide(runner, made.crawl, *whole)


def lay_kept(runner: Runner, made: Made, near: tuple[Retrieved, ...], selected: Selected) -> None:
    """Lay down what is known of the kept images, as export does before it writes them to shards."""
    crawl = made.crawl.collection
    parts = save_parts(made.crawl.parts, runner.scratch / "parts.json")
    source = Source(crawl, parts, selected.folder / "position-0.npy", 0, {})
    edges = runner.scratch / f"edges-{selected.address}.npy"
    bounds = bound_shards(edges, [crawl], selected.folder, selected.exported, SHARD, None)
    folders = Shards(runner.work / "export", selected.address)
    lay_facts(runner, folders, [source], NearestSeeds(near, TOP_K), bounds)


def report(
    runner: Runner,
    made: Made,
    out: Path,
    clustered: Clustered,
    copies: Deduplicated,
    answers: Answers,
    selected: Selected,
) -> Tables:
    """Write the tables of all images below `out`; return where."""
    folders = Tables(out)
    for folder in (folders.reports, folders.scratch):
        folder.mkdir(parents=True, exist_ok=True)
    crawl, scratch = made.crawl.collection, runner.scratch / "bounds.npy"
    bounds = bound_shards(scratch, [crawl], selected.folder, selected.exported, SHARD, None)
    decided = Decided(
        crawl=crawl,
        answers=answers,
        holdouts=(),
        assigned=clustered.assigned,
        groups=copies.groups,
        grouping="greedy",
        shapes=copies.shapes,
        dropped=None,
        included=Included(),
        selected=selected.folder,
        quality=QualitySettings(),
        filters=(),
        lists=(),
        removed=(),
        dedup_threshold=THRESHOLD,
        max_images=None,
        bounds=bounds,
    )
    write_tables(runner, folders, decided)
    return folders
