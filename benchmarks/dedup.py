"""Dedup against exact Faiss search: recall of planted pairs, time ratio, growth with the crawl.

Times are CPU-bound and compared inside one run, with the same threads; the exact search is timed on
a sample of queries and extrapolated.

    .venv/bin/python benchmarks/dedup.py --sizes 50000 200000 500000
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from curate.dedup import groups
from curate.dedup import near as dedup
from curate.dedup.keep import NUMBER, RANK
from curate.dedup.near import DedupSettings
from curate.forecast.clumps import clumps
from curate.neighbours import cluster
from curate.neighbours.cluster import Clusters, ClusterSettings
from curate.neighbours.search import unit, use_threads


@dataclass(frozen=True)
class InMemory:
    """Stands in for a Collection: distinct images with vectors, and nothing else."""

    stored: np.ndarray

    @property
    def canonical(self) -> np.ndarray:
        """Every image stands for its own content."""
        return np.arange(len(self.stored))

    usable = place = canonical

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self.stored.shape[1]

    def __len__(self) -> int:
        return len(self.stored)

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """Return stored vectors."""
        return self.stored[numbers]


def run(
    collection: InMemory, settings: DedupSettings, threads: int, work: Path
) -> tuple[np.ndarray, dict]:
    """Return the edges found (sorted ranks [e, 2]) and the seconds of every step."""
    seconds = {}

    def timed(name, function, *args):
        out = work / f"{name}-{len(list(work.iterdir()))}"
        out.mkdir()
        started = time.perf_counter()
        function(*args, out=out)
        seconds[name] = seconds.get(name, 0) + time.perf_counter() - started
        return out

    centers = timed("kmeans", cluster.centroids, collection, ClusterSettings(), threads)
    assigned = [
        timed(
            "assign",
            cluster.assign,
            collection,
            centers,
            at,
            min(at + 262_144, len(collection)),
            threads,
        )
        for at in range(0, len(collection), 262_144)
    ]
    ranges = cluster.buckets(assigned, 65_536)
    folders = [
        timed("members", cluster.members, centers, assigned, first, last) for first, last in ranges
    ]
    clusters = Clusters(centers, tuple(folders), tuple(ranges), len(collection))
    ranks = work / "ranks"
    ranks.mkdir()
    for name in (RANK, NUMBER):
        np.save(ranks / name, np.arange(len(collection)))
    searched = [
        timed(
            "search",
            dedup.search,
            collection,
            ranks,
            clusters,
            first,
            last,
            settings.threshold,
            settings,
            None,
            threads,
        )
        for first, last in ranges
    ]
    grouped = timed(
        "group", groups.group, ranks, searched, settings.groups, settings.edges_per_image, None
    )
    edges = groups.sorted_edges([np.load(folder / "edges.npy") for folder in searched])
    del grouped
    return edges, seconds


def exact_seconds(stored: np.ndarray, queries: int, threshold: float, threads: int) -> float:
    """Return the time of an exact Faiss range search of all, from that of a sample."""
    import faiss

    use_threads(threads)
    vectors = unit(stored)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    some = vectors[np.linspace(0, len(vectors) - 1, queries).astype(int)]
    index.range_search(some[:64], threshold)
    started = time.perf_counter()
    index.range_search(some, threshold)
    return (time.perf_counter() - started) * len(vectors) / queries


@click.command()
@click.option("--sizes", multiple=True, type=int, default=(50_000, 200_000, 500_000))
@click.option("--threshold", default=0.9)
@click.option("--probes", type=int, help="By default as a run does.")
@click.option("--queries", default=5_000)
@click.option("--threads", default=2)
@click.option("--exact/--no-exact", default=True)
def main(sizes, threshold, probes, queries, threads, exact) -> None:
    """Print a line for each size, and the exponent of the growth."""
    settings = DedupSettings(threshold=threshold, probes=probes or "auto")
    measured = []
    for n in sizes:
        vectors, planted = clumps(n, planted=n // 20, threshold=threshold)
        collection = InMemory(vectors.astype(np.float16))
        with tempfile.TemporaryDirectory() as work:
            edges, seconds = run(collection, settings, threads, Path(work))
        total = sum(seconds.values())
        pairs = np.sort(planted, 1)[:, ::-1]
        stored = unit(collection.stored)
        above = np.einsum("nd,nd->n", stored[pairs[:, 0]], stored[pairs[:, 1]]) >= threshold
        code = edges[:, 0] * n + edges[:, 1]
        found = np.isin(pairs[:, 0] * n + pairs[:, 1], code)
        half = len(pairs) // 2
        line = f"{n:>8,}  {total:7.1f} s  recall {found[above].mean():.4f} (borders {found[:half][above[:half]].mean():.4f})"
        if exact:
            whole = exact_seconds(collection.stored, queries, threshold, threads)
            line += f"  exact {whole:7.1f} s  ratio 1/{whole / total:.1f}"
        click.echo(line + "  " + "  ".join(f"{name} {took:.1f}" for name, took in seconds.items()))
        measured.append((n, total))
    if len(measured) > 1:
        sizes_, times = np.log(np.array(measured).T)
        click.echo(f"growth: exponent {np.polyfit(sizes_, times, 1)[0]:.2f}")


if __name__ == "__main__":
    main()
