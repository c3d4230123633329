"""The nearest seed images of an image of which the reports list none: of a copy, by its own vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curate.neighbours.in_dataset import nearest_images
from curate.search.search import of_keys
from curate.search.stored import open_stored, reading


def nearest_seeds(out: Path, work: Path, key: str) -> list[dict[str, Any]]:
    """Return what `retrieval.parquet` would say of an image: `seed`, `seed_key`, `similarity`.

    The `report.top_k` most similar images of all seeds whose like is wanted, ties by key. `strategy`
    is None: none was asked. LvdError where `work` does not hold the vectors.
    """
    stored = open_stored(out, work, "retrieve")
    asked, most = of_keys(stored, [key]), stored.run["settings"]["report"]["top_k"]
    found = []
    with reading(stored):
        for name, seed in stored.seeds().items():
            if stored.run["settings"]["seeds"][name]["negative"]:
                continue
            similarity, numbers = nearest_images(asked.vectors, seed, most)
            pairs = zip(seed.keys(numbers[0]), similarity[0].tolist(), strict=True)
            found += [
                {"seed": name, "seed_key": other, "similarity": cosine, "strategy": None}
                for other, cosine in pairs
            ]
    return sorted(found, key=lambda row: (-row["similarity"], row["seed_key"].encode()))[:most]
