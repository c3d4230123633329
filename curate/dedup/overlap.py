"""Stage overlap: how many images of a holdout have the bytes of an image of a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curate.catalogue.collection import Catalogued, Collection
from curate.stage import Runner, Stage, Unit

VERSION = 1
LARGE = 0.1
"""Share of a holdout from which it is told."""


@dataclass(frozen=True)
class Overlap:
    """A seed, a holdout, and how many of the latter's images are the former's too."""

    seed: str
    holdout: str
    shared: int
    images: int

    @property
    def problem(self) -> str | None:
        """What is wrong with that and what to do, in one line; None where it is little."""
        if not self.shared or self.shared < LARGE * self.images:
            return None
        return (
            f"holdout {self.holdout}: {self.shared:,} of its {self.images:,} images are images of "
            f"seed {self.seed} too, byte by byte: what is like them is looked for, and their copies "
            "are dropped; name a seed without them, such as the training split alone"
        )


def find_overlaps(
    runner: Runner, seeds: Sequence[Catalogued], holdouts: Sequence[Catalogued]
) -> list[Overlap]:
    """Compare the images of all seeds and holdouts by their hashes."""
    found = []
    for seed in seeds:
        for held in holdouts:
            stage = Stage("overlap", VERSION, [seed.address, held.address])
            args = (seed.collection, held.collection)
            [counts] = runner.run(stage, count_shared, [Unit("all", args)])
            found.append(Overlap(seed.name, held.name, **counts))
    return found


def count_shared(seed: Collection, holdout: Collection, *, out: Path) -> dict[str, int]:
    """Return how many of the holdout's `images` are `shared`; those without bytes are left out."""
    digests = holdout.digests()
    digests = digests[digests != b""]
    return {"shared": int(np.isin(digests, seed.digests()).sum()), "images": len(digests)}
