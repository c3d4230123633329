"""Farthest-first traversal: which candidates add most to what is held (Gonzalez, 1985)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int64

from curate.neighbours.search import top_k, unit

ROWS = 1_024
"""Candidates that are compared together with the picks that they have not seen yet."""


def pick_farthest(
    held: Float[np.ndarray, "h d"], candidates: Float[np.ndarray, "n d"], count: int
) -> tuple[Int64[np.ndarray, " m"], Float32[np.ndarray, " m"]]:
    """Return the rows of `count` candidates, and each one's cosine with the nearest held before it.

    One after another, the candidate whose nearest among the held and picked ones is least similar
    is picked, ties by row: at most twice as far from all as the best choice of so many would be,
    in angle. Vectors of zeros are never picked. With nothing held the first row is the first pick,
    at a cosine of nan. Memory grows with the picks times d, and hardly with the candidates.

    A cosine with the nearest only grows with further picks. So a block of candidates is compared
    with new picks only when what was known of it makes it the next to be picked from.
    """
    usable = (candidates != 0).any(1)
    count = min(count, int(usable.sum()))
    held = held[(held != 0).any(1)]
    similarity = np.full(len(candidates), -np.inf, np.float32)
    if len(held) and count:
        similarity = top_k(candidates, held, 1)[0][:, 0]
    similarity[~usable] = np.inf
    starts = np.arange(0, len(candidates), ROWS)
    least = np.array([similarity[at : at + ROWS].min() for at in starts])
    seen = np.zeros(len(starts), np.int64)
    picked, cosines = np.empty(count, np.int64), np.empty(count, np.float32)
    centres = np.empty((count, candidates.shape[1]))
    for place in range(count):
        while seen[block := int(np.argmin(least))] < place:
            own = slice(starts[block], starts[block] + ROWS)
            products = unit(candidates[own]).astype(np.float64) @ centres[seen[block] : place].T
            nearest = np.clip(products.max(1).astype(np.float32), np.float32(-1), np.float32(1))
            similarity[own] = np.maximum(similarity[own], nearest)
            least[block], seen[block] = similarity[own].min(), place
        own = slice(starts[block], starts[block] + ROWS)
        row = int(starts[block] + np.argmin(similarity[own]))
        picked[place], cosines[place] = row, similarity[row]
        centres[place] = unit(candidates[row : row + 1])[0]
        similarity[row] = np.inf
        least[block] = similarity[own].min()
    cosines[np.isneginf(cosines)] = np.nan
    return picked, cosines
