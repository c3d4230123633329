"""Figures of the head and the tail: how evenly images lie over clusters."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64


def measure_evenness(counts: Int64[np.ndarray, " k"], clusters: int) -> dict[str, float]:
    """Return what the largest tenth of so many clusters hold, and how many clusters count.

    `largest_tenth` is a share of all images; `effective_clusters` is the exponential of the entropy
    (in nats): k for k clusters of one size, 1 where one holds all.
    """
    total = counts.sum()
    if not total:
        return {"largest_tenth": 0.0, "effective_clusters": 0.0}
    share = np.sort(counts[counts > 0])[::-1] / total
    tenth = share[: -(-clusters // 10)].sum()
    effective = np.exp(-(share * np.log(share)).sum())
    return {
        "largest_tenth": round(float(tenth), 6),
        "effective_clusters": round(float(effective), 4),
    }
