"""The hashes of images' bytes, and which images are the same by them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64, Shaped

Digests = Shaped[np.ndarray, " n"]
"""The sha256 of every image as 32 bytes (`S32`); zeros where there is none."""


def digests_of(facts: pa.Table) -> Digests:
    """Return the digests in a table of facts."""
    text = "".join(value or "0" * 64 for value in facts["sha256"].to_pylist())
    return np.frombuffer(bytes.fromhex(text), "S32")


def first_copies(
    digests: Digests, taking_part: Bool[np.ndarray, " n"], place: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Return for each image the first, by `place`, of the same content; -1 where it takes no part."""
    canonical = np.full(len(digests), -1, np.int64)
    numbers = np.flatnonzero(taking_part)
    if len(numbers):
        words = np.ascontiguousarray(digests[numbers]).view(np.uint64).reshape(-1, 4)
        order = np.lexsort((place[numbers], *words.T))
        ordered = words[order]
        new = np.ones(len(order), bool)
        new[1:] = (ordered[1:] != ordered[:-1]).any(1)
        starts = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        canonical[numbers[order]] = numbers[order[starts]]
    return canonical
