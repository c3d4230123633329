"""Numbers the members of groups in the order in which they come."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Integer


def rank_within(groups: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return how many of the same group stand before each."""
    order = np.argsort(groups, kind="stable")
    places = np.arange(len(groups))
    ordered = groups[order]
    starts = np.where(np.diff(ordered, prepend=ordered[:1] - 1) != 0, places, 0)
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = places - np.maximum.accumulate(starts)
    return ranks
