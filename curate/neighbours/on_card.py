"""Products of vectors on a GPU by torch: a flat index as Faiss has one, and spherical k-means.

The project has torch wherever it has a card, and torch's products run on a CPU as well, so that the
same code is tested there. The builds of Faiss for GPUs own `faiss-cpu`'s package name, and search
no range. Products are float32, never TF32: `search.py` allows for their rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float32, Int64

PRODUCTS = 2**26
"""Products that are on the card at a time, at most: 256 MiB."""
SPLIT = np.float32(1 / 1024)
"""By how much the two halves of a cluster that is split differ, as in Faiss."""


class FlatOnCard:
    """Vectors on a device, searched by all their inner products; the methods are those of Faiss's."""

    def __init__(self, vectors: Float32[np.ndarray, "m d"], device: torch.device) -> None:
        self._base = torch.from_numpy(vectors).to(device)
        self._device = device

    def search(
        self, asked: Float32[np.ndarray, "n d"], k: int
    ) -> tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
        """Return the `k` largest inner products of each vector, falling, and their rows."""
        products = np.empty((len(asked), k), np.float32)
        rows = np.empty((len(asked), k), np.int64)
        for some, found in self._products(asked):
            best = found.topk(k, dim=1)
            products[some], rows[some] = best.values.cpu().numpy(), best.indices.cpu().numpy()
        return products, rows

    def range_search(
        self, asked: Float32[np.ndarray, "n d"], radius: float
    ) -> tuple[
        Int64[np.ndarray, " n+1"], Float32[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]
    ]:
        """Return all inner products above `radius` and their rows, those of vector i from limit i."""
        counts = np.zeros(len(asked) + 1, np.int64)
        products, rows = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
        for some, found in self._products(asked):
            query, row = torch.nonzero(found > radius, as_tuple=True)
            counts[1:][some] = torch.bincount(query, minlength=len(found)).cpu().numpy()
            products.append(found[query, row].cpu().numpy())
            rows.append(row.cpu().numpy())
        return np.cumsum(counts), np.concatenate(products), np.concatenate(rows)

    def _products(
        self, asked: Float32[np.ndarray, "n d"]
    ) -> Iterator[tuple[slice, Float32[torch.Tensor, "some m"]]]:
        step = max(1, PRODUCTS // max(1, len(self._base)))
        for at in range(0, len(asked), step):
            some = slice(at, at + step)
            with _whole_float32():
                yield some, torch.from_numpy(asked[some]).to(self._device) @ self._base.T


def kmeans(
    vectors: Float32[np.ndarray, "n d"],
    clusters: int,
    iterations: int,
    seed: int,
    device: torch.device,
) -> Float32[np.ndarray, "k d"]:
    """Return the unit centroids that Lloyd's steps come to, from as many vectors drawn by `seed`.

    Of more vectors than `clusters`. Clusters without a vector become half of the largest, as in Faiss.
    Vectors are assigned on the device and added up on the host, in their order, so that sums are the
    same in every run.
    """
    rng = np.random.default_rng(seed)
    centroids = vectors[rng.choice(len(vectors), clusters, replace=False)]
    for _ in range(iterations):
        owner = FlatOnCard(centroids, device).search(vectors, 1)[1][:, 0]
        order, counts = np.argsort(owner, kind="stable"), np.bincount(owner, minlength=clusters)
        full = np.flatnonzero(counts)
        starts = np.searchsorted(owner[order], full)
        sums = np.zeros((clusters, vectors.shape[1]), np.float32)
        sums[full] = np.add.reduceat(vectors[order], starts, axis=0)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids = sums / np.where(norms > 0, norms, np.float32(1))
        _split_largest(centroids, counts)
    return centroids


def _split_largest(centroids: Float32[np.ndarray, "k d"], counts: Int64[np.ndarray, " k"]) -> None:
    """Give each empty cluster, in place, half of the one that is then largest."""
    sign = np.where(np.arange(centroids.shape[1]) % 2, -SPLIT, SPLIT)
    for empty in np.flatnonzero(counts == 0):
        largest = int(counts.argmax())
        counts[empty] = counts[largest] // 2
        counts[largest] -= counts[empty]
        centroids[empty] = centroids[largest] * (1 + sign)
        centroids[largest] *= 1 - sign


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Multiply with all bits of a float32, whatever else the process asked torch for."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
