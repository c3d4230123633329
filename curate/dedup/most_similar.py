"""Collects pairs of images, and forgets all but the most similar ones of each."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64

COMPACT_AT = 4_000_000

Ranks = Int64[np.ndarray, " p"]


class MostSimilar:
    """Holds of each image the `most` others that are most similar to it, ties to the best rank."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._pairs = np.empty((0, 2), np.int64)
        self._similarity = np.empty(0, np.float32)
        self._pending: list[tuple[Ranks, Ranks, Float32[np.ndarray, " p"]]] = []
        self._count = 0

    def add(self, image: Ranks, other: Ranks, similarity: Float32[np.ndarray, " p"]) -> None:
        """Take pairs; one that comes again counts once."""
        self._pending.append((image, other, similarity))
        self._count += len(image)
        if self._count > COMPACT_AT:
            self._compact()

    def result(self) -> tuple[Ranks, Ranks, Float32[np.ndarray, " p"]]:
        """Return the pairs held, by image, and their similarities."""
        self._compact()
        return self._pairs[:, 0], self._pairs[:, 1], self._similarity

    def _compact(self) -> None:
        new = [np.stack(each[:2], 1) for each in self._pending]
        pairs = np.concatenate([self._pairs, *new])
        similarity = np.concatenate([self._similarity, *(each[2] for each in self._pending)])
        self._pending, self._count = [], 0
        order = np.lexsort((pairs[:, 1], -similarity, pairs[:, 0]))
        new_ones = np.ones(len(order), bool)
        new_ones[1:] = (np.diff(pairs[order], axis=0) != 0).any(1)
        order = order[new_ones]
        image = pairs[order, 0]
        starts = np.searchsorted(image, image)
        keep = order[np.arange(len(image)) - starts < self._most]
        self._pairs, self._similarity = pairs[keep], similarity[keep]
