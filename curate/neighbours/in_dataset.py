"""The images of a dataset that are most similar to given vectors, a part of it in memory at a time."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from curate.catalogue.collection import Collection
from curate.neighbours.search import first_k, top_k

TOGETHER = 65_536
"""Images of the dataset whose vectors are in memory at a time, at most."""


def nearest_images(
    queries: Float[np.ndarray, "n d"],
    dataset: Collection,
    k: int,
    among: Bool[np.ndarray, " m"] | None = None,
) -> tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    """Return the cosines and numbers of the `k` open images most similar to every stored vector.

    By falling similarity, ties by key; a dataset of fewer than `k` open images gives as many columns
    as it has. Only those of `among` count, which tells by place in the order of the keys. The
    dataset's vectors stay where they are mapped: `TOGETHER` of them are copied, 6 d bytes each.
    """
    similarity = np.empty((len(queries), 0), np.float32)
    places = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(dataset), TOGETHER):
        numbers = start + np.flatnonzero(dataset.canonical[start : start + TOGETHER] >= 0)
        place = dataset.place[numbers]
        if among is not None:
            numbers, place = numbers[among[place]], place[among[place]]
        if not len(numbers):
            continue
        by_key = np.argsort(place)
        near, row = top_k(queries, dataset.vectors(numbers[by_key]), k)
        similarity, places = first_k(
            np.hstack([similarity, near]), np.hstack([places, place[by_key][row]]), k
        )
    return similarity, dataset.order[places]
