"""The nearest pairs of a sample, and a second look at which of them show one picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from curate.calibration.same_picture import Thumbnail, judge_thumbnails
from curate.neighbours.search import cosine
from curate.pixels.same import Verdict

MOST_PAIRS = 100_000
MOST_LOOKED = 3_000
ENOUGH = 500
"""Pairs of different pictures after which nobody looks further."""
UNTHINNED = 1_000
"""Pairs that are all looked at, before any are passed over: what decides in a small crawl."""
_CHUNK = 100
_BLOCK = 256

Thumbnails = Callable[[int], Thumbnail | None]
"""Gives `thumbnail` of the image in a row of the vectors; None when unreadable."""
FinerLook = Callable[[int, int], Verdict]
"""Tells whether the images in two rows show one picture, where their thumbnails do not tell."""


@dataclass(frozen=True)
class LookedPairs:
    """Pairs of images of a sample of `images`, by falling cosine, after the second look."""

    images: int
    one: Int64[np.ndarray, " p"]
    other: Int64[np.ndarray, " p"]
    cosine: Float32[np.ndarray, " p"]
    weight: Float64[np.ndarray, " p"]
    """How many pairs each stands for."""
    same: Bool[np.ndarray, " p"]
    """Whether both show one picture."""
    unsure: Bool[np.ndarray, " p"]
    """Whether that is hard to say: such pairs are not `same`."""
    lowest: float
    """Pairs below this cosine were not looked at."""


def mark_apart(
    found: LookedPairs, numbers: Int64[np.ndarray, " m"], apart: Int64[np.ndarray, "a 2"]
) -> LookedPairs:
    """Return the pairs where a person has said that some, of image numbers, are two pictures.

    `numbers` are those of the sample's rows. A pair that nobody looked at stays out of the sample.
    """
    said = set(map(tuple, np.sort(apart, axis=1).tolist()))
    pairs = np.sort(np.stack([numbers[found.one], numbers[found.other]], 1), axis=1)
    known = np.array([tuple(pair) in said for pair in pairs.tolist()], bool)
    return replace(found, same=found.same & ~known, unsure=found.unsure & ~known)


def look_at_nearest(
    vectors: Float32[np.ndarray, "m d"],
    thumbnail_of: Thumbnails,
    look_finer: FinerLook,
    enough: int = ENOUGH,
) -> LookedPairs:
    """Look at the nearest pairs of unit vectors until `enough` of them are different pictures.

    Where thumbnails do not tell, `look_finer` may. Where most pairs are copies, only every second,
    fourth, ... behind the first `UNTHINNED` is looked at, and stands for so many. Looks at
    `MOST_LOOKED` pairs at most; a pair that cannot be read is left out.
    """
    one, other, cosines = nearest_pairs(vectors, MOST_PAIRS)
    enough = min(enough, max(20, len(vectors) * (len(vectors) - 1) // 1000))
    small: dict[int, Thumbnail | None] = {}

    def seen(row: int) -> Thumbnail | None:
        if row not in small:
            small[row] = thumbnail_of(row)
        return small[row]

    places: list[int] = []
    weights: list[int] = []
    verdicts: list[Verdict] = []
    at, step, different = 0, 1, 0
    while at < len(one) and different < enough and len(places) < MOST_LOOKED:
        chunk = range(at, min(at + _CHUNK * step, len(one)), step)
        before = different
        for place in chunk:
            first, second = seen(int(one[place])), seen(int(other[place]))
            if first is None or second is None:
                continue
            places.append(place)
            weights.append(min(step, len(one) - place))
            verdict = judge_thumbnails(first, second)
            if verdict == "unsure":
                verdict = look_finer(int(one[place]), int(other[place]))
            verdicts.append(verdict)
            different += verdict != "same"
        at += _CHUNK * step
        if at >= UNTHINNED and 2 * (different - before) < len(chunk):
            step *= 2
    chosen = np.array(places, np.int64)
    return LookedPairs(
        images=len(vectors),
        one=one[chosen],
        other=other[chosen],
        cosine=cosines[chosen],
        weight=np.array(weights, np.float64),
        same=np.array([verdict == "same" for verdict in verdicts], bool),
        unsure=np.array([verdict == "unsure" for verdict in verdicts], bool),
        lowest=float(cosines[min(at, len(one)) - 1]) if len(one) else 1.0,
    )


def nearest_pairs(
    vectors: Float32[np.ndarray, "m d"], most: int
) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"], Float32[np.ndarray, " p"]]:
    """Return the `most` pairs of highest cosine of unit vectors: first and second row, cosine.

    Sorted by falling cosine, ties by rows; the first row is the smaller one.
    """
    pairs, products = np.empty(0, np.int64), np.empty(0, np.float32)
    count = len(vectors)
    for start in range(0, count, _BLOCK):
        block = vectors[start : start + _BLOCK] @ vectors[start:].T
        block[np.tril_indices(len(block), 0, block.shape[1])] = -np.inf
        floor = products.min() if len(products) == most else np.float32(-2)
        near = np.flatnonzero(block >= floor)
        rows, columns = np.divmod(near, block.shape[1])
        pairs = np.concatenate([pairs, (rows + start) * count + columns + start])
        products = np.concatenate([products, block.ravel()[near]])
        if len(products) > most:
            best = np.argpartition(-products, most - 1)[:most]
            pairs, products = pairs[best], products[best]
    one, other = np.divmod(pairs, max(1, count))
    exact = np.empty(len(pairs), np.float32)
    for at in range(0, len(pairs), 4_096):
        some = slice(at, at + 4_096)
        exact[some] = cosine(vectors[one[some]], vectors[other[some]])
    order = np.lexsort((pairs, -exact))
    return one[order], other[order], exact[order]
