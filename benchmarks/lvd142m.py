"""The pipeline `lvd142m`, scaled to a pool of benchmarks/planted.py: what is kept, by seed and strategy.

Some of its seeds are folders of the seed pictures of POOL, dealt to them by class. Scaled are: what
a large seed is (100 images for a million), the clusters (the square root of the images, for
100,000) and the images of one (120 of some 145, as 10,000 of some 12,000). The embedders are the
bundled ones, and with them the threshold of copies is the one that the run measures. All else is as
`pipelines.yaml` has it.

    .venv/bin/python benchmarks/planted.py DATA/tiny-imagenet POOL
    .venv/bin/python benchmarks/lvd142m.py POOL WORK
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.labelled import Labelled, Runs, describe_kinds, write_table
from benchmarks.proof.pool import read_labelled
from benchmarks.truth import read_images
from curate.report.tables import read_funnel

SEEDS = {
    "imagenet22k": 16,
    "imagenet1k": 8,
    "mapillary": 4,
    "caltech101": 4,
    "cub200": 4,
    "oxford-pets": 4,
}
"""Of the pipeline, and how many of 40 classes each shows, in the order of their labels."""
SCALED = (
    *("dedup.embedder=bundled-copies", "retrieve.embedder=bundled", "dedup.threshold=auto"),
    *("retrieve.large_seed=100", "retrieve.cluster.clusters=null", "retrieve.cluster.images=120"),
)


@click.command()
@click.argument("pool", type=click.Path(path_type=Path, exists=True))
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, help="More settings of the run.")
def main(pool: Path, work: Path, settings: tuple[str, ...]) -> None:
    """Run the pipeline on POOL and print a row for each seed; the run goes to WORK."""
    labels = write_seeds(pool, work / "seeds")
    labelled = Labelled.read(pool, "shown=yes")
    words = [f"--seed={name}" for name in SEEDS]
    words += [f"--set=datasets.{name}.path={work.absolute()}/seeds/{name}" for name in SEEDS]
    words += [f"--set=datasets.crawl.path={labelled.crawl}"]
    out = Runs(work, ("--pipeline=lvd142m", *words)).run(*SCALED, *settings)
    images, funnel = read_images(out), read_funnel(out)
    kept = labelled.score(images)
    click.echo(f"{len(images):,} images: {describe_decisions(funnel['decisions'])}\n")
    click.echo(describe_by_seed(funnel["seeds"], labels, labelled.truth, images))
    click.echo(
        f"\nIn all {kept.images:,} are kept, {describe_kinds(kept.kinds)}: of the classes of all "
        f"seeds {kept.precision:.3f}; recall of their pictures {kept.recall:.3f}"
    )


def write_seeds(pool: Path, out: Path) -> dict[str, list[int]]:
    """Write a folder of pictures for each of `SEEDS`; return the labels that each of them shows."""
    pictures = read_labelled(sorted((pool / "seed").glob("*.tar")))
    labels, first, found = sorted(pictures), 0, {}
    parts = sum(SEEDS.values())
    for name, share in SEEDS.items():
        last = first + share
        own = labels[first * len(labels) // parts : last * len(labels) // parts]
        (out / name).mkdir(parents=True, exist_ok=True)
        for label in own:
            for number, data in enumerate(pictures[label]):
                (out / name / f"{label:04d}-{number:03d}.jpg").write_bytes(data)
        found[name], first = own, last
    return found


def describe_by_seed(
    seeds: Mapping[str, Mapping],
    labels: Mapping[str, Sequence[int]],
    truth: Mapping[str, Mapping[str, str]],
    images: Mapping[str, Mapping],
) -> str:
    """Return a table of what each seed retrieves, and how much of it is of its own classes."""
    rows = []
    for name, told in seeds.items():
        own = {str(label) for label in labels[name]}
        chance = sum(row["label"] in own for row in truth.values()) / len(truth)
        kept = [stem for stem, row in images.items() if name in (row["seeds"] or ())]
        right = sum(truth[stem]["label"] in own for stem in kept)
        any_shown = sum(truth[stem]["shown"] == "yes" for stem in kept)
        rows.append(
            (
                f"`{name}`",
                told["strategy"],
                f"{told['images']:,} of {len(own)}",
                f"{told['retrieved']:,}",
                f"{told['alone']:,}",
                f"{right / len(kept):.3f}, {chance:.3f}" if kept else "",
                f"{any_shown / len(kept):.3f}" if kept else "",
                f"{told['included'].get('kept', 0):,}" if "included" in told else "",
            )
        )
    header = ("seed", "strategy", "images, classes", "retrieved", "by it alone")
    return write_table(
        (*header, "of its classes, in the pool", "of any seed's", "own images"), rows
    )


def describe_decisions(decisions: Mapping[str, int]) -> str:
    """Return what became of the images, without what became of none."""
    counts = Counter(decisions)
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common() if count)


if __name__ == "__main__":
    main()
