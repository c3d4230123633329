"""Stage one's searches and k-means on a card, against the bare matrix product that they stand on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.gpu.section import Context, Row
from benchmarks.gpu.timing import median_lap, peak_gib
from curate.neighbours.on_card import FlatOnCard, kmeans

DIM = 384
BASE, QUERIES, CLUSTERS = 262_144, 65_536, 2_048
QUICK = 512, 128, 16
RADIUS = 0.25
"""Of random vectors of 384 dimensions about one pair in two million reaches it."""


def measure(context: Context, emit: Callable[[Row], None]) -> None:
    """Search random unit vectors, from memory of the host to results there."""
    base, queries, clusters = QUICK if context.quick else (BASE, QUERIES, CLUSTERS)
    device = torch.device(context.device)
    rng = np.random.default_rng(0)
    vectors, asked = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (rng.standard_normal((rows, DIM), np.float32) for rows in (base, queries))
    )
    index = FlatOnCard(vectors, device)
    on_card = torch.from_numpy(asked[:4_096]).to(device), torch.from_numpy(vectors).to(device)
    seconds = 0.1 if context.quick else 1.0
    bare = median_lap(lambda: on_card[0] @ on_card[1].T, device, warmup=2, seconds=seconds, least=3)
    bare *= queries / len(on_card[0])
    searches = {
        "8 nearest (retrieve)": lambda: index.search(asked, 8),
        "nearest centroid (assign)": lambda: FlatOnCard(vectors[:clusters], device).search(
            asked, 1
        ),
        "range (dedup)": lambda: index.range_search(asked, RADIUS),
        "k-means, a step": lambda: kmeans(asked, clusters, 1, 0, device),
    }
    for name, search in searches.items():
        lap = median_lap(search, device, warmup=1, seconds=seconds, least=3)
        among = base if name in ("8 nearest (retrieve)", "range (dedup)") else clusters
        product = bare * among / base
        emit(
            {
                "search": name,
                "among": among,
                "vectors/s": queries / lap,
                "TFLOP/s": 2 * queries * among * DIM / lap / 1e12,
                "share of the product": product / lap,
                "peak GiB": peak_gib(device),
            }
        )
