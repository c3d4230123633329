"""Dedup against exact Faiss search and SemDeDup's matrices: recall of planted pairs, ratios, growth.

Times are of the processor and compared inside one run, with the same threads. Exact search and matrices
are timed on a sample of queries (of 500 or more: Faiss takes eight times as long for each of 300) and of
clusters, and extrapolated. Torch is imported before, as a run has it from embedding. SemDeDup (arXiv 2303.09540) compares
all vectors of a cluster with one another, of 440 million in 50,000 clusters: 8,800 in each. Its k-means is
not counted, ours is.

    export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
    .venv/bin/python benchmarks/dedup.py --sizes 50000 --sizes 200000 --sizes 500000 --threads 1
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from curate.dedup import groups
from curate.dedup import near as dedup
from curate.dedup.bar import Bar
from curate.dedup.keep import NUMBER, RANK
from curate.dedup.near import DedupSettings
from curate.dedup.probes import find_heaps
from curate.forecast.clumps import clumps
from curate.neighbours import cluster
from curate.neighbours.cluster import ClusterSettings
from curate.neighbours.clusters import Clusters
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
        started = time.process_time()
        function(*args, out=out)
        seconds[name] = seconds.get(name, 0) + time.process_time() - started
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
    heaps = timed("heaps", find_heaps, clusters, settings.threshold, threads)
    how = settings.threshold, settings, None, threads
    asked = [timed("ask", dedup.ask, clusters, heaps, *each, *how) for each in ranges]
    bar = Bar(settings.threshold, settings.threshold)
    searched = [
        timed("search", dedup.search, ranks, clusters, asked, *each, bar, *how[1:])
        for each in ranges
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
    started = time.process_time()
    index.range_search(some, threshold)
    return (time.process_time() - started) * len(vectors) / queries


def matrix_seconds(stored: np.ndarray, size: int, threshold: float) -> float:
    """Return the time of full matrices of clusters of `size` vectors, from that of one or two of them."""
    size = min(size, len(stored))
    taken = 0.0
    counted = min(2, max(1, len(stored) // size))
    for place in range(counted):
        members = unit(stored[place * size : (place + 1) * size])
        started = time.process_time()
        similarity = members @ members.T
        highest = np.triu(similarity, 1).max(0)
        int((highest >= threshold).sum())
        taken += time.process_time() - started
    return taken / counted * len(stored) / size


@click.command()
@click.option("--sizes", multiple=True, type=int, default=(50_000, 200_000, 500_000))
@click.option("--threshold", default=0.9)
@click.option("--probes", type=int, help="By default as a run does.")
@click.option("--queries", default=5_000)
@click.option("--threads", default=2)
@click.option("--exact/--no-exact", default=True)
@click.option("--cluster-size", default=8_800, help="Vectors of a cluster of SemDeDup.")
def main(sizes, threshold, probes, queries, threads, exact, cluster_size) -> None:
    """Print a line for each size, and the exponent of the growth."""
    torch.set_num_threads(threads)
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
            line += f"  exact {whole:7.1f} s: {whole / total:.1f} times as long"
        matrices = matrix_seconds(collection.stored, cluster_size, threshold)
        line += f"  matrices {matrices:.1f} s: {matrices / total:.1f} times as long"
        click.echo(line + "  " + "  ".join(f"{name} {took:.1f}" for name, took in seconds.items()))
        measured.append((n, total))
    if len(measured) > 1:
        sizes_, times = np.log(np.array(measured).T)
        click.echo(f"growth: exponent {np.polyfit(sizes_, times, 1)[0]:.2f}")


if __name__ == "__main__":
    main()
