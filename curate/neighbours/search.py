"""Exact cosine search and spherical k-means on unit vectors, by Faiss.

The one module that imports faiss. Everywhere in curate, the similarity of two stored float16
vectors is `cosine`: renormalised in float32, accumulated in float64, rounded to float32, clamped
to [-1, 1]. Faiss's float32 products only propose candidates, with a slack that covers their
rounding, so results do not depend on block sizes, threads or the order of the vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np

from shared.errors import LvdError

SLACK = np.float32(1e-4)
"""More than the rounding of a float32 inner product of two unit vectors of up to 4096 dimensions."""

HEAD_SLACK = np.float32(2e-3)
"""More than the rounding of the inner product of two float16 heads of unit vectors."""

HEADS_PAY = 0.01
"""Above this share of pairs, looking at the candidates costs more than searching whole vectors."""

BASE_ROWS = 262_144
QUERY_ROWS = 4_096
PAIRS_AT_ONCE = 4_000_000


def _faiss():
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import faiss

    return faiss


def gpus_wanted(device: str) -> int:
    """Return how many GPUs a task of `top_k` asks for: one where there are GPUs and faiss-gpu."""
    return int(device == "cuda" and installed_faiss() != "faiss-cpu")


def installed_faiss() -> str:
    """Return which distribution of faiss is installed; the two own the same package name."""
    for name in ("faiss-gpu-cu12", "faiss-cpu"):
        with suppress(PackageNotFoundError):
            distribution(name)
            return name
    raise LvdError("faiss is not installed: run `make setup`")


def _knn(queries: np.ndarray, base: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the approximate inner products and rows of the nearest base rows, on a GPU if seen."""
    faiss = _faiss()
    if faiss.get_num_gpus():
        resources = faiss.StandardGpuResources()
        return faiss.knn_gpu(resources, queries, base, k, metric=faiss.METRIC_INNER_PRODUCT)
    return faiss.knn(queries, base, k, metric=faiss.METRIC_INNER_PRODUCT)


def use_threads(threads: int) -> None:
    """Let Faiss use `threads` threads in this process."""
    _faiss().omp_set_num_threads(threads)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return float16 or float32 vectors [n, d] renormalised in float32; zero vectors stay zero."""
    vectors = np.array(vectors, dtype=np.float32, order="C")
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)).astype(np.float32)
    vectors /= np.where(norms > 0, norms, np.float32(1))[:, None]
    return vectors


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the float32 cosines [n] of the rows of two arrays of unit vectors [n, d]."""
    products = np.einsum("nd,nd->n", a, b, dtype=np.float64)
    return np.clip(products.astype(np.float32), np.float32(-1), np.float32(1))


def principal_axes(vectors: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` orthonormal directions [d, count] that hold most of unit vectors [n, d]."""
    moment = (vectors.T @ vectors).astype(np.float64)
    return np.linalg.eigh(moment)[1][:, ::-1][:, :count].astype(np.float32)


def heads(vectors: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return float16 heads [n, h + 1] of unit vectors [n, d]: coordinates, and the rest's norm.

    By Cauchy and Schwarz the inner product of two heads is at least that of their vectors, so a
    search among heads misses no pair (up to `HEAD_SLACK`, their rounding).
    """
    along = vectors @ axes
    rest = np.sqrt(np.maximum(0, 1 - np.einsum("nh,nh->n", along, along)))
    return np.column_stack([along, rest]).astype(np.float16)


@dataclass(frozen=True)
class Searchable:
    """Stored vectors [n, d], with their heads [n, h + 1] where these speed the search up.

    Unit vectors are made of the stored ones only where they are looked at.
    """

    stored: np.ndarray
    numbers: np.ndarray
    """int64 [n]: who they are. A vector is no neighbour of itself."""
    heads: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: np.ndarray | slice) -> Searchable:
        heads = None if self.heads is None else self.heads[rows]
        return Searchable(self.stored[rows], self.numbers[rows], heads)

    def unit(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the unit vectors of some rows."""
        return unit(self.stored[rows])


def joined(parts: list[Searchable]) -> Searchable:
    """Return the vectors of several as one, with float32 heads."""
    return Searchable(
        np.concatenate([part.stored for part in parts]),
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.heads for part in parts]).astype(np.float32),
    )


def neighbours(
    queries: Searchable, rows: np.ndarray, base: Searchable, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every (query row, base row), of the `rows` of the queries, that reaches `threshold`.

    Yields pairs of int64 arrays, in bounded memory: a block's products never number more than
    about `PAIRS_AT_ONCE`. Where both sides have heads, these are searched first, until they let
    through more than `HEADS_PAY` of all pairs.
    """
    threshold = np.float32(threshold)
    by_heads = queries.heads is not None and base.heads is not None
    for start in range(0, len(base), BASE_ROWS):
        block = base[start : start + BASE_ROWS]
        step = max(16, min(QUERY_ROWS, PAIRS_AT_ONCE // len(block)))
        whole = head = None
        for first in range(0, len(rows), step):
            asking = rows[first : first + step]
            if by_heads:
                head = head or _flat_index(block.heads)
                at, found, _ = _range(head, queries.heads[asking], threshold - HEAD_SLACK)
                if len(at) <= HEADS_PAY * len(asking) * len(block):
                    other = queries.numbers[asking[at]] != block.numbers[found]
                    row, found = asking[at[other]], found[other]
                    keep = _reach(queries, row, block, found, threshold)
                    yield row[keep], found[keep] + start
                    continue
                by_heads = False
            whole = whole or _flat_index(block.unit())
            at, found, similarity = _range(whole, queries.unit(asking), threshold - SLACK)
            row = asking[at]
            keep = similarity >= threshold + SLACK
            doubtful = np.flatnonzero(~keep)
            keep[doubtful] = _reach(queries, row[doubtful], block, found[doubtful], threshold)
            keep &= queries.numbers[row] != block.numbers[found]
            yield row[keep], found[keep] + start


def _flat_index(vectors: np.ndarray):
    index = _faiss().IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def _range(index, asked: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    limits, similarity, found = index.range_search(
        np.ascontiguousarray(asked, np.float32), float(radius)
    )
    return np.repeat(np.arange(len(asked)), np.diff(limits.astype(np.int64))), found, similarity


def _reach(
    a: Searchable, row: np.ndarray, b: Searchable, found: np.ndarray, threshold: np.float32
) -> np.ndarray:
    """Return of pairs of rows whether their exact cosine reaches the threshold: bool [n]."""
    reach = np.empty(len(row), bool)
    for at in range(0, len(row), QUERY_ROWS):
        some = slice(at, at + QUERY_ROWS)
        reach[some] = cosine(a.unit(row[some]), b.unit(found[some])) >= threshold
    return reach


def top_k(queries: np.ndarray, base: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `k` most similar base rows of every query: float32 [n, k] and int64 [n, k].

    Takes stored vectors, float16 or float32, [n, d] and [m, d]. Sorted by falling similarity,
    ties by base row; a base of fewer than `k` rows gives as many columns as it has rows.
    """
    k = min(k, len(base))
    similarity = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    base_blocks = [slice(at, at + BASE_ROWS) for at in range(0, len(base), BASE_ROWS)]
    units = unit(base) if len(base_blocks) == 1 else None
    group = QUERY_ROWS if units is not None else 16 * QUERY_ROWS
    for first in range(0, len(queries), group):
        asked = unit(queries[first : first + group])
        best = np.full((len(asked), 0), 0, np.float32), np.empty((len(asked), 0), np.int64)
        for at in base_blocks:
            found = _top_k_of_block(asked, unit(base[at]) if units is None else units, k)
            best = _first_k(
                np.hstack([best[0], found[0]]), np.hstack([best[1], found[1] + at.start]), k
            )
        similarity[first : first + group], rows[first : first + group] = best
    return similarity, rows


def _top_k_of_block(asked: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    k = min(k, len(block))
    wide = min(len(block), k + 8)
    proposed, found = _knn(asked, block, wide)
    exact = np.empty_like(proposed)
    for at in range(0, len(asked), 512):
        exact[at : at + 512] = _cosines(asked[at : at + 512], block[found[at : at + 512]])
    similarity, rows = _first_k(exact, found, k)
    if wide < len(block):
        # Beyond the proposals there may be ties with the last one kept: ask for all of these.
        crowded = np.flatnonzero(proposed[:, -1] >= similarity[:, -1] - SLACK)
        index = _flat_index(block) if len(crowded) else None
        for row in crowded:
            _, near, _ = _range(index, asked[row : row + 1], similarity[row, -1] - SLACK)
            cosines = cosine(np.broadcast_to(asked[row], (len(near), block.shape[1])), block[near])
            similarity[row], rows[row] = (x[0] for x in _first_k(cosines[None], near[None], k))
    return similarity, rows


def _cosines(asked: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    products = np.einsum("nd,nkd->nk", asked, candidates, dtype=np.float64)
    return np.clip(products.astype(np.float32), np.float32(-1), np.float32(1))


def _first_k(similarity: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((rows, -similarity), axis=1)[:, :k]
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(rows, order, 1)


def spherical_kmeans(vectors: np.ndarray, clusters: int, iterations: int, seed: int) -> np.ndarray:
    """Return float32 unit centroids [clusters, d] of unit vectors [n, d]."""
    faiss = _faiss()
    if clusters == 1 or len(vectors) <= clusters:
        return unit(vectors.mean(axis=0, keepdims=True)) if clusters == 1 else vectors.copy()
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        clusters,
        niter=iterations,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors) // clusters + 1,
    )
    kmeans.train(np.ascontiguousarray(vectors))
    return unit(kmeans.centroids)


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the int32 row of the nearest centroid of each unit vector [n, d]."""
    if not len(vectors):
        return np.empty(0, np.int32)
    return _knn(vectors, centroids, 1)[1][:, 0].astype(np.int32)
