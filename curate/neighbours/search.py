"""Exact cosine search and spherical k-means on unit vectors, by Faiss, or on a card by torch.

The one module that imports faiss. Where the process sees a card, that computes the products
(`on_card.py`); a CPU that multiplies bfloat16 does so where much is searched (`coarse.py`).
Everywhere in curate, the similarity of two stored float16 vectors is `cosine`: renormalised in
float32, accumulated in float64, rounded to float32, clamped to [-1, 1]. Products only propose
candidates, with a slack that covers their rounding, so results do not depend on block sizes,
threads, the kind of processor or the order of the vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int8, Int32, Int64, Integer

from curate.neighbours.cpu import pays
from curate.neighbours.heads import HeadIndex
from shared.errors import LvdError

if TYPE_CHECKING:
    import torch

    from curate.neighbours.coarse import CoarseIndex

SLACK = np.float32(1e-4)
"""More than the rounding of a float32 inner product of two unit vectors of up to 4096 dimensions."""

HEADS_PAY = 0.01
"""Above this share of pairs, looking at the candidates costs more than searching whole vectors."""

BASE_ROWS = 262_144
QUERY_ROWS = 4_096
PAIRS_AT_ONCE = 4_000_000

CANDIDATES_AT_ONCE = 16_384
"""Candidates whose exact cosines are taken together: float32 vectors, and no more."""

DRIVER = Path("/proc/driver/nvidia/version")

Rows = Integer[np.ndarray, " n"]


@runtime_checkable
class FlatIndex(Protocol):
    """Vectors that are searched by all their inner products: Faiss's, or those on a card."""

    def range_search(
        self, asked: Float32[np.ndarray, "n d"], radius: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the limits of each query's products above `radius`, the products and their rows."""
        ...


def _faiss() -> ModuleType:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import faiss

    return faiss


def gpus_wanted() -> int:
    """Return how many GPUs a task of `top_k` asks for: one where this machine has a card, or on a
    cluster, whose machines may have some (without any, tasks run on processors)."""
    return int(bool(os.environ.get("RAY_ADDRESS")) or card() is not None)


def card() -> torch.device | None:
    """Return the card that this process computes products on; `CUDA_VISIBLE_DEVICES=` hides it.

    Torch is not imported on machines without a driver.
    """
    if not DRIVER.exists() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    import torch

    return torch.device("cuda") if torch.cuda.is_available() else None


def installed_faiss() -> str:
    """Return which distribution of faiss is installed; all of them own the same package name."""
    for name in ("faiss-cpu", "faiss-gpu-cuvs", "faiss-gpu", "faiss-gpu-cu12"):
        with suppress(PackageNotFoundError):
            distribution(name)
            return name
    raise LvdError("faiss is not installed: run `make setup`")


def _knn(
    queries: Float32[np.ndarray, "n d"], base: Float32[np.ndarray, "m d"], k: int
) -> tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Return the approximate inner products and rows of the nearest base rows."""
    if (device := card()) is not None:
        from curate.neighbours.on_card import FlatOnCard

        return FlatOnCard(base, device).search(queries, k)
    faiss = _faiss()
    return faiss.knn(queries, base, k, metric=faiss.METRIC_INNER_PRODUCT)


def use_threads(threads: int) -> None:
    """Let Faiss use `threads` threads in this process."""
    _faiss().omp_set_num_threads(threads)


def unit(vectors: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Return float16 or float32 vectors renormalised in float32; zero vectors stay zero."""
    vectors = np.array(vectors, dtype=np.float32, order="C")
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)).astype(np.float32)
    vectors /= np.where(norms > 0, norms, np.float32(1))[:, None]
    return vectors


def cosine(
    a: Float32[np.ndarray, "n d"], b: Float32[np.ndarray, "n d"]
) -> Float32[np.ndarray, " n"]:
    """Return the cosines of the rows of two arrays of unit vectors."""
    products = np.einsum("nd,nd->n", a, b, dtype=np.float64)
    return np.clip(products.astype(np.float32), np.float32(-1), np.float32(1))


def principal_axes(vectors: Float32[np.ndarray, "n d"], count: int) -> Float32[np.ndarray, "d h"]:
    """Return the `count` orthonormal directions that hold most of unit vectors."""
    moment = (vectors.T @ vectors).astype(np.float64)
    return np.linalg.eigh(moment)[1][:, ::-1][:, :count].astype(np.float32)


@dataclass(frozen=True)
class Searchable:
    """Stored vectors, with their heads where these speed the search up.

    Unit vectors are made of the stored ones only where they are looked at.
    """

    stored: Float[np.ndarray, "n d"]
    numbers: Int64[np.ndarray, " n"]
    """Who they are. A vector is no neighbour of itself."""
    heads: Int8[np.ndarray, "n head"] | None = None

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: Rows | slice) -> Searchable:
        heads = None if self.heads is None else self.heads[rows]
        return Searchable(self.stored[rows], self.numbers[rows], heads)

    def unit(self, rows: Rows | slice = slice(None)) -> Float32[np.ndarray, "m d"]:
        """Return the unit vectors of some rows."""
        return unit(self.stored[rows])


def joined(parts: list[Searchable]) -> Searchable:
    """Return the vectors of several, all of which have heads, as one."""
    return Searchable(
        np.concatenate([part.stored for part in parts]),
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.heads for part in parts]),
    )


def neighbours(
    queries: Searchable, rows: Rows, base: Searchable, threshold: float
) -> Iterator[tuple[Rows, Rows]]:
    """Yield every (query row, base row), of the `rows` of the queries, that reaches `threshold`.

    Yields arrays of one length, in bounded memory: a block's products never number more than
    about `PAIRS_AT_ONCE`. Where both sides have heads, these are searched first, until they let
    through more than `HEADS_PAY` of all pairs.
    """
    least = np.float32(threshold)
    for start in range(0, len(base), BASE_ROWS):
        block, done = base[start : start + BASE_ROWS], 0
        if queries.heads is not None and block.heads is not None:
            asked, index = queries.heads.take(rows, 0), HeadIndex(block.heads, card())
            for some, at, found in index.reaching(asked, least):
                if len(at) > HEADS_PAY * (some.stop - some.start) * len(block):
                    break
                row, done = rows[some][at], some.stop
                other = queries.numbers[row] != block.numbers[found]
                row, found = row[other], found[other]
                keep = _reach(queries, row, block, found, least)
                yield row[keep], found[keep] + start
        for row, found in _whole(queries, rows[done:], block, least):
            yield row, found + start


def _whole(
    queries: Searchable, rows: Rows, block: Searchable, least: np.float32
) -> Iterator[tuple[Rows, Rows]]:
    """Yield what `neighbours` does, by products of whole vectors."""
    if not len(rows):
        return
    step = max(16, min(QUERY_ROWS, PAIRS_AT_ONCE // len(block)))
    index = _flat_index(block.unit())
    for first in range(0, len(rows), step):
        asking = rows[first : first + step]
        at, found, similarity = _range(index, queries.unit(asking), least - SLACK)
        row = asking[at]
        keep = similarity >= least + SLACK
        doubtful = np.flatnonzero(~keep)
        keep[doubtful] = _reach(queries, row[doubtful], block, found[doubtful], least)
        keep &= queries.numbers[row] != block.numbers[found]
        yield row[keep], found[keep]


def _flat_index(vectors: Float[np.ndarray, "n d"]) -> FlatIndex:
    if (device := card()) is not None:
        from curate.neighbours.on_card import FlatOnCard

        return FlatOnCard(np.ascontiguousarray(vectors, np.float32), device)
    index = _faiss().IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def _range(
    index: FlatIndex, asked: Float[np.ndarray, "n d"], radius: float | np.float32
) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"], Float32[np.ndarray, " p"]]:
    limits, similarity, found = index.range_search(
        np.ascontiguousarray(asked, np.float32), float(radius)
    )
    counts: np.ndarray = np.diff(limits.astype(np.int64))
    return np.repeat(np.arange(len(asked)), counts), found, similarity


def _reach(
    a: Searchable, row: Rows, b: Searchable, found: Rows, threshold: np.float32
) -> Bool[np.ndarray, " n"]:
    """Return of pairs of rows whether their exact cosine reaches the threshold."""
    reached: Bool[np.ndarray, " n"] = cosines(a, row, b, found) >= threshold
    return reached


def cosines(a: Searchable, row: Rows, b: Searchable, found: Rows) -> Float32[np.ndarray, " n"]:
    """Return the cosines of pairs of rows."""
    result = np.empty(len(row), np.float32)
    for at in range(0, len(row), QUERY_ROWS):
        some = slice(at, at + QUERY_ROWS)
        result[some] = cosine(a.unit(row[some]), b.unit(found[some]))
    return result


def top_k(
    queries: Float[np.ndarray, "n d"], base: Float[np.ndarray, "m d"], k: int
) -> tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Return the cosines and rows of the `k` most similar base vectors of every query.

    Takes stored vectors, float16 or float32. Sorted by falling similarity,
    ties by base row; a base of fewer than `k` rows gives as many columns as it has rows.
    """
    k = min(k, len(base))
    similarity = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    base_blocks = [slice(at, at + BASE_ROWS) for at in range(0, len(base), BASE_ROWS)]
    whole = _block(base, len(queries), k) if len(base_blocks) == 1 else None
    group = QUERY_ROWS if whole is not None else 16 * QUERY_ROWS
    for first in range(0, len(queries), group):
        asked = unit(queries[first : first + group])
        best = np.full((len(asked), 0), 0, np.float32), np.empty((len(asked), 0), np.int64)
        for at in base_blocks:
            found = _top_k_of_block(asked, whole or _block(base[at], len(asked), k), k)
            best = first_k(
                np.hstack([best[0], found[0]]), np.hstack([best[1], found[1] + at.start]), k
            )
        similarity[first : first + group], rows[first : first + group] = best
    return similarity, rows


class _Block(NamedTuple):
    units: Float32[np.ndarray, "m d"]
    coarse: CoarseIndex | None


def _block(base: Float[np.ndarray, "m d"], queries: int, k: int) -> _Block:
    """Return the unit vectors of stored ones, with a `CoarseIndex` where so many queries repay it."""
    units = unit(base)
    if card() is not None or not pays(queries, len(units), units.shape[1], k):
        return _Block(units, None)
    from curate.neighbours.coarse import CoarseIndex

    return _Block(units, CoarseIndex(units, _faiss().omp_get_max_threads()))


def _top_k_of_block(
    asked: Float32[np.ndarray, "n d"], block: _Block, k: int
) -> tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    k = min(k, len(block.units))
    if block.coarse is None:
        return _top_k_by_float32(asked, block.units, k)
    similarity = np.empty((len(asked), k), np.float32)
    rows = np.empty((len(asked), k), np.int64)
    left = np.zeros(len(asked), bool)
    for some in block.coarse.nearest(asked, k):
        exact = np.empty(len(some.rows), np.float32)
        for at in range(0, len(exact), QUERY_ROWS):
            pairs = slice(at, at + QUERY_ROWS)
            exact[pairs] = cosine(asked[some.queries[pairs]], block.units[some.rows[pairs]])
        order = np.lexsort((some.rows, -exact, some.queries))
        best = order[np.searchsorted(some.queries, some.done)[:, None] + np.arange(k)]
        similarity[some.done], rows[some.done] = exact[best], some.rows[best]
        left[some.crowded] = True
        if len(some.crowded) > len(some.done):  # the next ones are likely to be so, too
            left[some.stop :] = True
            break
    if left.any():
        similarity[left], rows[left] = _top_k_by_float32(asked[left], block.units, k)
    return similarity, rows


def _top_k_by_float32(
    asked: Float32[np.ndarray, "n d"], block: Float32[np.ndarray, "m d"], k: int
) -> tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    wide = min(len(block), k + 8)
    proposed, found = _knn(asked, block, wide)
    exact = np.empty_like(proposed)
    step = max(1, min(512, CANDIDATES_AT_ONCE // wide))
    for at in range(0, len(asked), step):
        some = slice(at, at + step)
        exact[some] = _cosines(asked[some], block[found[some]])
    similarity, rows = first_k(exact, found, k)
    if wide < len(block):
        # Beyond the proposals there may be ties with the last one kept: ask for all of these.
        crowded = np.flatnonzero(proposed[:, -1] >= similarity[:, -1] - SLACK)
        index: FlatIndex | None = None
        for row in crowded:
            index = index or _flat_index(block)
            _, near, _ = _range(index, asked[row : row + 1], similarity[row, -1] - SLACK)
            cosines = cosine(np.broadcast_to(asked[row], (len(near), block.shape[1])), block[near])
            similarity[row], rows[row] = (x[0] for x in first_k(cosines[None], near[None], k))
    return similarity, rows


def _cosines(
    asked: Float32[np.ndarray, "n d"], candidates: Float32[np.ndarray, "n k d"]
) -> Float32[np.ndarray, "n k"]:
    products = np.einsum("nd,nkd->nk", asked, candidates, dtype=np.float64)
    return np.clip(products.astype(np.float32), np.float32(-1), np.float32(1))


def first_k(
    similarity: Float32[np.ndarray, "n m"], rows: Int64[np.ndarray, "n m"], k: int
) -> tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Return the `k` most similar of every row, ties by what `rows` says."""
    order = np.lexsort((rows, -similarity), axis=1)[:, :k]
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(rows, order, 1)


def spherical_kmeans(
    vectors: Float32[np.ndarray, "n d"], clusters: int, iterations: int, seed: int
) -> Float32[np.ndarray, "k d"]:
    """Return the unit centroids of unit vectors: `clusters`, or the vectors if these are fewer."""
    if clusters == 1 or len(vectors) <= clusters:
        return unit(vectors.mean(axis=0, keepdims=True)) if clusters == 1 else vectors.copy()
    if (device := card()) is not None:
        from curate.neighbours.on_card import kmeans as kmeans_on_card

        found = kmeans_on_card(np.ascontiguousarray(vectors), clusters, iterations, seed, device)
        return unit(found)
    faiss = _faiss()
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


def nearest(
    vectors: Float32[np.ndarray, "n d"], centroids: Float32[np.ndarray, "k d"]
) -> Int32[np.ndarray, " n"]:
    """Return the row of the nearest centroid of each unit vector."""
    if not len(vectors):
        return np.empty(0, np.int32)
    return _knn(vectors, centroids, 1)[1][:, 0].astype(np.int32)
