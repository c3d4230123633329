"""Deals a number to clusters as evenly as what they hold allows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64


def deal(
    capacity: Int64[np.ndarray, " k"], target: int, rng: np.random.Generator
) -> Int64[np.ndarray, " k"]:
    """Return k integers of the sum `target`, none above its capacity, as equal as can be.

    All get min(m, capacity), of the largest m for which the sum of these is not above the target
    (Vo et al., arXiv 2405.15613, section 3.3); what is left goes one by one to clusters that `rng`
    draws of those that hold more. A target beyond all capacities fills them.
    """
    ascending = np.sort(capacity)
    below = np.cumsum(ascending) - ascending
    larger = np.arange(len(ascending), 0, -1)
    filled = int(np.searchsorted(below + ascending * larger, target, side="right"))
    if filled == len(ascending):
        return capacity.copy()
    most = (target - int(below[filled])) // int(larger[filled])
    dealt = np.minimum(capacity, most)
    rest = target - int(dealt.sum())
    dealt[rng.choice(np.flatnonzero(capacity > most), rest, replace=False)] += 1
    return dealt
