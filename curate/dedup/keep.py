"""Which image of a group stands for it: policies that order the images from best to worst.

`rank_contents` gives every distinct content its rank by a policy, 0 for the best: of images of the
same bytes the best one stands for them. A reduce.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64, Shaped

from curate.catalogue.collection import Collection
from curate.catalogue.keyed_order import keyed_hash

VERSION = 2
RANK, NUMBER = "rank.npy", "number.npy"
PolicyName = Literal["resolution", "bytes", "metadata", "random", "centrality"]

Scores = tuple[Shaped[np.ndarray, " n"], ...]
"""What images are compared by, the first first; more is better."""


@dataclass(frozen=True)
class Policy:
    """An order of images; ties go to the first key."""

    columns: tuple[str, ...]
    """The facts that it looks at."""
    score: Callable[[pa.Table, int], Scores]
    """Of a table of facts and a seed."""
    central: bool = False
    """Whether the one nearest to all others stands for a group, and the order decides ties only."""


def _pixels(facts: pa.Table) -> Int64[np.ndarray, " n"]:
    width, height = (facts[side].fill_null(0).to_numpy().astype(np.int64) for side in _SIDES)
    return width * height


def _by_resolution(facts: pa.Table, seed: int) -> Scores:
    return _pixels(facts), facts["bytes"].to_numpy()


def _by_bytes(facts: pa.Table, seed: int) -> Scores:
    return facts["bytes"].to_numpy(), _pixels(facts)


def _by_metadata(facts: pa.Table, seed: int) -> Scores:
    lengths = [
        pc.utf8_length(pc.utf8_trim_whitespace(facts[name].fill_null(""))).to_numpy()
        for name in _METADATA
    ]
    filled = np.sum([length > 0 for length in lengths], axis=0)
    return filled, lengths[0], *_by_resolution(facts, seed)


def _at_random(facts: pa.Table, seed: int) -> Scores:
    return (np.array([keyed_hash(key, seed) for key in facts["key"].to_pylist()], np.uint64),)


_SIDES = ("width", "height")
_METADATA = ("caption", "url")
_FACTS = (*_SIDES, "bytes")

POLICIES: dict[PolicyName, Policy] = {
    "resolution": Policy(_FACTS, _by_resolution),
    "bytes": Policy(_FACTS, _by_bytes),
    "metadata": Policy((*_FACTS, *_METADATA), _by_metadata),
    "random": Policy((), _at_random),
    "centrality": Policy(_FACTS, _by_resolution, central=True),
}
"""A new one is its function and its line here."""


def rank_contents(
    collection: Collection, policy: PolicyName, seed: int, *, out: Path
) -> dict[str, int]:
    """Write `rank.npy` int64 by image number: the rank of its content, -1 where it takes no part.

    Beside it `number.npy` int64 by rank: the image that stands for the content. Those that stand for
    themselves (of a result that a run adds to, and by labels) come first, whatever the policy.
    """
    chosen = POLICIES[policy]
    tables = (
        collection.facts_of_part(part, chosen.columns) for part in range(len(collection.parts))
    )
    parts = [chosen.score(facts, seed) for facts in tables]
    scores = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    stays = np.isin(np.arange(len(collection)), collection.standing)
    best_last = np.lexsort((-collection.place[:], *reversed(scores), stays))
    canonical = collection.canonical[:]
    order = best_last[::-1][canonical[best_last[::-1]] >= 0]
    contents, first = np.unique(canonical[order], return_index=True)
    number = order[np.sort(first)]
    of_content = np.full(len(canonical), -1, np.int64)
    of_content[canonical[number]] = np.arange(len(number))
    np.save(out / RANK, np.where(canonical >= 0, of_content[canonical], -1))
    np.save(out / NUMBER, number)
    return {"contents": len(contents)}
