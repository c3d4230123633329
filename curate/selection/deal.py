"""Deals a number to clusters as evenly as what they hold allows."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from jaxtyping import Int64


def deal(
    capacity: Int64[np.ndarray, " k"],
    target: int,
    rng: np.random.Generator,
    least: Int64[np.ndarray, " k"] | None = None,
) -> Int64[np.ndarray, " k"]:
    """Return k integers of the sum `target`, none above its capacity, as equal as can be.

    All get min(m, capacity), of the largest m for which the sum of these is not above the target
    (Vo et al., arXiv 2405.15613, section 3.3); what is left goes one by one to clusters that `rng`
    draws of those that hold more. A target beyond all capacities fills them. None gets less than
    its `least`, which is not above its capacity and by default 0, even where the sum then is above
    the target.
    """
    least = np.zeros_like(capacity) if least is None else least
    if target >= capacity.sum():
        return capacity.copy()
    if target <= least.sum():
        return least.copy()
    most = bisect_right(
        range(1, int(capacity.max()) + 1),
        target,
        key=lambda m: int(np.clip(m, least, capacity).sum()),
    )
    dealt = np.clip(most, least, capacity)
    rest = target - int(dealt.sum())
    dealt[rng.choice(np.flatnonzero((capacity > most) & (least <= most)), rest, replace=False)] += 1
    return dealt
