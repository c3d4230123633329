"""A crawl of ten million images: what retrieve, assign and the exchange of vectors to clusters take.

Synthetic float16 vectors (`clumps.clump_pieces`) are written to disk in pieces, as the parts of a crawl
and of a seed, and taken through the project's own stages, inline and on one thread. Vectors are removed
before they are exchanged, when nothing reads them any more, so that the disk holds 4.7 bytes a dimension.
Memory is what the process holds of its own (`RssAnon`): mapped files do not count.

    export OMP_NUM_THREADS=1
    nice .venv/bin/python benchmarks/large_crawl.py --images 10000000 --work DIR
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
from large_seed import PART, write_dataset
from million import Row, measured
from timed_units import TimedUnits

from curate.execution.executor import Call
from curate.execution.session import open_runner
from curate.forecast.clumps import clump_pieces
from curate.neighbours.cluster import Clustered, ClusterSettings, cluster, members
from curate.retrieval.nearest_seeds import retrieve
from curate.stage import EngineSettings


def count_exchanged(clustered: Clustered, images: int) -> tuple[int, int]:
    """Return how many images have a place in a cluster, and how many of these are in the one assigned."""
    seen, right = np.zeros(images, bool), 0
    cluster_of = np.concatenate([np.load(unit / "cluster.npy") for unit in clustered.assigned])
    for folder, (first, last) in zip(
        clustered.clusters.folders, clustered.clusters.ranges, strict=True
    ):
        numbers, offsets = (np.load(folder / f"{name}.npy") for name in ("numbers", "offsets"))
        seen[numbers] = True
        own = np.repeat(np.arange(first, last), np.diff(offsets))
        right += int((cluster_of[numbers] == own).sum())
    return int(seen.sum()), right


@click.command()
@click.option("--images", default=1_000_000, help="Crawled images.")
@click.option("--seeds", default=1_000, help="Images of the seed.")
@click.option("--dim", default=384)
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Remove it afterwards."
)
def main(images: int, seeds: int, dim: int, work: Path) -> None:
    """Print what each step took; what an earlier call has left in WORK is not done again."""
    rows: dict[str, Row] = {}
    taken: defaultdict[str, float] = defaultdict(float)

    def count(call: Call, cpu: float) -> None:
        taken[call.function.__name__] += cpu

    def make_room(call: Call) -> None:
        if call.function is members:  # which reads no vectors of the crawl's own
            shutil.rmtree(work / "made" / "crawl", ignore_errors=True)

    def tell(step: str, said: str) -> None:
        row = rows[step]
        click.echo(
            f"{step:20s} {row.cpu:8.1f} CPU s {row.mebibytes:7.0f} MiB "
            f"{row.stored / 1e9:6.1f} GB stored  {said}"
        )

    with measured(rows, "making the vectors", work):
        crawl = write_dataset(work, "crawl", clump_pieces(images, dim, PART, 0, 0))
        seed = write_dataset(work, "seed", clump_pieces(seeds, dim, PART, 0, 1))
    tell("making the vectors", f"{images:,} x {dim}")
    np.save(work / "representative.npy", np.arange(images))
    with open_runner(work, EngineSettings(), "inline") as runner:
        runner.executor = TimedUnits(count, make_room)
        with measured(rows, "retrieve", work):
            retrieve(runner, crawl, work, "all", [seed], 5, 1)
        tell("retrieve", f"{1e6 * rows['retrieve'].cpu / images:.1f} CPU us an image")
        with measured(rows, "cluster", work):
            clustered = cluster(runner, crawl, ClusterSettings(), 1, None)
        took = ", ".join(f"{name} {cpu:.1f} CPU s" for name, cpu in taken.items())
        tell("cluster", f"{len(clustered.clusters.load()):,} clusters; {took}")
        seen, right = count_exchanged(clustered, images)
        click.echo(f"exchanged: {seen:,} of {images:,} images, {right:,} to their cluster")


if __name__ == "__main__":
    main()
