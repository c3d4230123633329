"""What each strategy of retrieval, balance and each grouping of copies make of one labelled crawl.

FOLDER holds `crawl`, `seed` and `truth.csv` (benchmarks/planted.py writes one). Wanted are the rows
of truth that --wanted names, and N is the number of their pictures, or half of it. All strategies
keep N: `threshold` by `retrieve.target`, the others by the least whole number of images for a seed
image or a cluster that retrieves N, of which `retrieve.max_images` then keeps the N most similar.
With balance they retrieve N, of which half is kept. Groups are made at the thresholds that the run
measures, of all and of drawn pictures, and at --threshold; a chain's floor is that same threshold (of
all). All else is as by default.

    .venv/bin/python benchmarks/planted.py DATA/tiny-imagenet POOL
    .venv/bin/python benchmarks/strategies.py POOL WORK --wanted shown=yes
    .venv/bin/python benchmarks/strategies.py DATA/crawl-small WORK --part 00004 --part 00005
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.labelled import Labelled, Runs, describe_kinds, write_table
from benchmarks.truth import count_copies, count_pairs, read_images
from curate.report.tables import read_funnel, table_files

ALL = "retrieve.threshold=-1"
TARGET = "retrieve.target"
PHOTOGRAPHS = ("animal", "object")


@dataclass(frozen=True)
class Strategy:
    """A way to retrieve, and the number that says how much it retrieves."""

    name: str
    settings: tuple[str, ...]
    number: str
    balanced: bool = False
    """Whether it is measured under balance, too."""

    def ask(self, number: int, size: int) -> tuple[str, ...]:
        """Return the settings that keep `size` images, where the number retrieves as many or more."""
        budget = () if self.number == TARGET else (f"retrieve.max_images={size}",)
        return *self.settings, f"{self.number}={number}", *budget


STRATEGIES = (
    Strategy("threshold", (), TARGET, balanced=True),
    Strategy("knn", ("retrieve.strategy=knn",), "retrieve.knn.neighbours", balanced=True),
    Strategy(
        "knn, collisions deeper",
        ("retrieve.strategy=knn", "retrieve.knn.collisions=deeper"),
        "retrieve.knn.neighbours",
    ),
    Strategy("cluster", ("retrieve.strategy=cluster",), "retrieve.cluster.images", balanced=True),
    Strategy(
        "cluster, order random",
        ("retrieve.strategy=cluster", "retrieve.cluster.order=random"),
        "retrieve.cluster.images",
    ),
)
COMPONENTS = "dedup.groups=components"
GROUPINGS = {
    "greedy": (),
    "components": (COMPONENTS,),
    "components, with a floor": (COMPONENTS, "dedup.chain_floor={threshold}"),
    "components, search of the pool": (COMPONENTS, "dedup.search=pool"),
}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--wanted", default="kind=animal", show_default=True, metavar="COLUMN=VALUE")
@click.option("--part", "parts", multiple=True, help="Of the crawl; by default all.")
@click.option("--threshold", default=0.6, show_default=True, help="Of copies: the paper's.")
def main(folder: Path, work: Path, wanted: str, parts: tuple[str, ...], threshold: float) -> None:
    """Print the tables of FOLDER; runs go to WORK, where a second call finds them."""
    labelled = Labelled.read(folder, wanted, parts)
    words = ("--pipeline=sample", f"--crawl={labelled.crawl}", f"--seed={folder}/seed")
    runs = Runs(work, words)
    for line in kept_by_strategy(labelled, runs):
        click.echo(line)
    click.echo()
    for line in found_by_grouping(labelled, runs, threshold):
        click.echo(line)


def kept_by_strategy(labelled: Labelled, runs: Runs) -> Iterator[str]:
    """Give the lines of a table of what is kept by each strategy, at N and N / 2, and with balance."""
    everything = runs.images(ALL)
    whole = len(labelled.wanted_pictures(everything))
    half = (whole + 1) // 2
    yield f"{len(everything):,} images, of {whole:,} wanted pictures\n"
    rows = [("all but copies", "", "", *_score(labelled, everything))]
    for size in (whole, half):
        for strategy in STRATEGIES:
            number, retrieved = find_number(strategy, size, runs)
            settings = strategy.ask(number, size)
            said = f"`{strategy.number}={number}`", f"{retrieved:,}"
            rows.append((strategy.name, *said, *_score(labelled, runs.images(*settings))))
    for strategy in STRATEGIES:
        if strategy.balanced:
            settings = strategy.ask(find_number(strategy, whole, runs)[0], whole)
            images = runs.images(*settings, f"balance.target={half}")
            said = f"`balance.target={half}`", f"{whole:,}"
            rows.append((f"{strategy.name}, balance", *said, *_score(labelled, images)))
    header = "strategy", "number", "retrieved", "kept", "precision", "recall", "classes", "kinds"
    yield write_table(header, rows)


def find_number(strategy: Strategy, size: int, runs: Runs) -> tuple[int, int]:
    """Return the least number that retrieves `size` images or more, and how many it retrieves.

    Where none does, the number is that of all images.
    """
    if strategy.number == TARGET:
        return size, size

    def retrieved(number: int) -> int:
        out = runs.run(*strategy.settings, f"{strategy.number}={number}")
        [seed] = read_funnel(out)["seeds"].values()
        return int(seed["retrieved"])

    most = len(runs.images(ALL))
    low, high = 0, 1
    while high < most and retrieved(high) < size:
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if retrieved(middle) >= size else (middle, high)
    return high, retrieved(high)


def found_by_grouping(labelled: Labelled, runs: Runs, threshold: float) -> Iterator[str]:
    """Give the lines of a table of the planted copies that each grouping finds, and of its groups."""
    measured = read_funnel(runs.run(ALL))["thresholds"]["dedup"]
    rows = []
    for value, of_drawn in ((measured["value"], measured.get("drawn")), (threshold, None)):
        bar = [f"dedup.threshold={value}"]
        bar += [] if of_drawn is None else [f"dedup.drawn_threshold={of_drawn}"]
        for name, settings in GROUPINGS.items():
            asked = [setting.format(threshold=value) for setting in settings]
            out = runs.run(ALL, *bar, *asked)
            rows.append((name, f"{value:.3f}", *_score_groups(labelled, out)))
    header = "groups", "threshold", "copies found", "right pairs", "groups", "largest", "chains"
    yield write_table((*header, "largest diameter", "kept"), rows)


def _score(labelled: Labelled, images: dict[str, dict]) -> tuple[str, ...]:
    kept = labelled.score(images)
    classes = "" if kept.classes is None else f"{kept.classes:.1f}"
    kinds = describe_kinds(kept.kinds)
    return f"{kept.images:,}", f"{kept.precision:.3f}", f"{kept.recall:.3f}", classes, kinds


def _score_groups(labelled: Labelled, out: Path) -> tuple[str, ...]:
    images = read_images(out)
    found, total = count_copies(labelled.truth, images, PHOTOGRAPHS)
    planted = [name for name in total if not name.startswith("(")]
    copies, all_copies = (sum(counts[name] for name in planted) for counts in (found, total))
    right, pairs = count_pairs(labelled.truth, images, PHOTOGRAPHS)
    kept = sum(row["decision"] == "kept" for row in images.values())
    if not read_funnel(out)["groups"]["count"]:  # then there is no table of them
        return f"0 of {all_copies:,}", "", "0", "", "0", "", f"{kept:,}"
    groups = pq.read_table([str(file) for file in table_files(out, "groups")])
    sizes, diameters = (groups[name].to_numpy() for name in ("size", "diameter"))
    return (
        f"{copies / max(1, all_copies):.3f} of {all_copies:,}",
        f"{right / max(1, pairs):.3f} of {pairs:,}",
        f"{len(groups):,}",
        f"{sizes.max(initial=0):,}",
        f"{groups['chain'].to_numpy(zero_copy_only=False).sum():,}",
        f"{diameters.max(initial=0):.2f}",
        f"{kept:,}",
    )


if __name__ == "__main__":
    main()
