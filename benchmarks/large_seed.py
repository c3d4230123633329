"""A seed of millions of images: what its index and a search in it take, and what the search loses.

Synthetic float16 vectors (`clumps.clump_pieces`) are written to disk in pieces, as the parts of a seed
and of a crawl, and taken through the project's own stage retrieve, inline and on one thread. Memory is
what the process holds of its own (`RssAnon`): the seed's vectors are mapped files, of which a node
keeps what it has room for. The vectors take 2 bytes a dimension, and the index about 5 in all.

    export OMP_NUM_THREADS=1
    nice .venv/bin/python benchmarks/large_seed.py --seeds 14000000 --images 8192 --work DIR
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from million import Row, measured, own_mebibytes
from timed_units import TimedUnits

from curate.catalogue.collection import PARTS, Catalogued, Collection, PartOutputs
from curate.catalogue.part_files import VECTORS
from curate.execution.executor import Call
from curate.execution.session import open_runner
from curate.forecast.clumps import clump_pieces
from curate.retrieval import nearest_seeds
from curate.retrieval.nearest_seeds import retrieve
from curate.retrieval.seed_index import SeedIndexSettings, index_seed
from curate.stage import EngineSettings
from shared.storage.files import write_json

PART = 65_536
"""Images of a part, and vectors that are made together."""


def write_dataset(work: Path, name: str, pieces: Iterator[np.ndarray]) -> Catalogued:
    """Return a dataset of different images with these vectors and no facts, which retrieve never asks for."""
    home = work / "catalogue" / name / "all"
    if (home / "place.npy").exists():
        return Catalogued(name, [], Collection(home), f"{name}-{len(Collection(home))}")
    home.mkdir(parents=True, exist_ok=True)
    parts, starts = [], [0]
    for at, piece in enumerate(pieces):
        place = f"made/{name}/{at:06d}"
        (work / place).mkdir(parents=True, exist_ok=True)
        np.save(work / place / VECTORS, piece.astype(np.float16))
        parts.append(vars(PartOutputs(f"{at:06d}", "", place, None, place, False)))
        starts.append(starts[-1] + len(piece))
    write_json(home / PARTS, parts)
    numbers = np.arange(starts[-1])
    np.save(home / "starts.npy", np.array(starts))
    np.save(home / "decision.npy", np.zeros(len(numbers), np.int8))
    for array in ("canonical", "order", "place"):
        np.save(home / f"{array}.npy", numbers)
    return Catalogued(name, [], Collection(home), f"{name}-{len(numbers)}")


def _tell_block(call: Call, cpu: float) -> None:
    if call.function is nearest_seeds.search:
        click.echo(f"block {call.unit.name} {cpu:8.1f} CPU s {own_mebibytes():7.0f} MiB")


def _first(images: int, pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    while images > 0:
        yield (piece := next(pieces)[:images])
        images -= len(piece)


@click.command()
@click.option("--seeds", default=2_000_000, help="Images of the seed.")
@click.option("--images", default=8_192, help="Crawled images.")
@click.option("--dim", default=384)
@click.option("--k", default=5, help="Nearest seed images of each.")
@click.option("--clusters", type=int, help="Of the seed.  [default: the root of its images]")
@click.option("--probes", default=[SeedIndexSettings().probes], multiple=True, help="Repeatable.")
@click.option("--sample", default=256, help="Images that are compared with the whole seed.")
@click.option(
    "--together",
    default=nearest_seeds.IN_CLUSTERS,
    show_default=True,
    help="Images that are searched together.",
)
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Remove it afterwards."
)
def main(
    seeds: int,
    images: int,
    dim: int,
    k: int,
    clusters: int | None,
    probes: tuple[int, ...],
    sample: int,
    together: int,
    work: Path,
) -> None:
    """Print what each step took; what an earlier call has left in WORK is not done again."""
    nearest_seeds.IN_CLUSTERS = together
    rows: dict[str, Row] = {}
    settings = SeedIndexSettings(exact=min(seeds - 1, 1_000_000), clusters=clusters or "auto")

    def tell(step: str, said: str) -> None:
        row = rows[step]
        click.echo(f"{step:20s} {row.cpu:8.1f} CPU s {row.mebibytes:7.0f} MiB  {said}")

    with measured(rows, "making the vectors", work):
        seed = write_dataset(work, "seed", clump_pieces(seeds, dim, PART, 0, 0))
        crawl = write_dataset(work, "crawl", _first(images, clump_pieces(seeds, dim, PART, 0, 1)))
    tell("making the vectors", f"{seeds:,} x {dim}")
    np.save(work / "representative.npy", np.arange(images))
    with open_runner(work, EngineSettings(), "inline") as runner:
        runner.executor = TimedUnits(_tell_block)
        with measured(rows, "index", work), runner.at_work("retrieve"):
            index = index_seed(runner, seed, settings, 1)
        assert index is not None
        stored = rows["index"].stored / 1e9
        tell("index", f"{len(index.clusters.load()):,} clusters, {stored:.1f} GB")
        for each in probes:
            how = settings.model_copy(update={"probes": each, "recall_sample": 0})
            args = runner, crawl, work, "all", [seed], k, 1
            search, recall = f"search, {each} probes", f"recall, {each} probes"
            with measured(rows, search, work):
                retrieve(*args, how)
            tell(search, f"{images:,} images, {1e3 * rows[search].cpu / images:.2f} CPU ms each")
            with measured(rows, recall, work):
                [found] = retrieve(*args, how.model_copy(update={"recall_sample": sample}))
            told = found.recall or {}
            tell(recall, f"{told['recall']:.4f} of {told['pairs']:,} nearest")


if __name__ == "__main__":
    main()
