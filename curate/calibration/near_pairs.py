"""The nearest pairs of a sample, and a second look at which of them show one picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from curate.calibration.second_look import FinerLook, SecondLook, Thumbnails
from curate.neighbours.search import cosine
from curate.pixels.same import Verdict

MOST_PAIRS = 100_000
MOST_LOOKED, FILLED = 3_000, 1_500
ENOUGH = 500
"""Pairs of different pictures after which nobody looks further."""
UNTHINNED = 1_000
"""Pairs that are all looked at, before any are passed over: what decides in a small crawl."""
FIRM = 50
"""So many pairs of different pictures, the nearest, decide on a threshold."""
Pairs = tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"], Float32[np.ndarray, " p"]]
_CHUNK = 100
_BLOCK = 256


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
    looks: int
    """Pairs that were looked at; what the others show was known from these."""


@dataclass(frozen=True)
class Looked:
    """The nearest pairs of a sample by kind, as either needs a threshold of its own."""

    others: LookedPairs
    """Not of two drawn pictures."""
    drawn: LookedPairs
    drawn_images: int
    """Images of the sample that are drawn."""


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
    drawn: Bool[np.ndarray, " m"],
    thumbnail_of: Thumbnails,
    look_finer: FinerLook,
    enough: int = ENOUGH,
) -> Looked:
    """Look at the nearest pairs of unit vectors, of which some are of `drawn` pictures.

    Of either kind, until `enough` of them are different pictures, at `MOST_LOOKED` at most. Nobody
    looks at two images that others were seen to join: they are the same. Where most of the others are
    copies too, only every second, fourth, ... behind the first `UNTHINNED` is looked at, and stands for
    so many; then those between, `FILLED` at most, above some `FIRM` pairs that are different, as these
    decide on the threshold, and are looked at firmly. A pair that cannot be read is left out.
    """
    second_look = SecondLook(vectors, drawn, thumbnail_of, look_finer)
    rows = np.flatnonzero(drawn)
    one, other, cosines = nearest_pairs(vectors[rows], MOST_PAIRS)
    others = nearest_pairs(vectors, MOST_PAIRS, apart=drawn)
    return Looked(
        _look(others, second_look, len(vectors), enough),
        _look((rows[one], rows[other], cosines), second_look, len(vectors), enough),
        len(rows),
    )


def _look(pairs: Pairs, second_look: SecondLook, images: int, enough: int) -> LookedPairs:
    one, other, cosines = pairs
    enough = min(enough, max(20, images * (images - 1) // 1000))
    seen: dict[int, Verdict | None] = {}
    stands_for: Counter[int] = Counter()
    passed_by: dict[int, int] = {}
    """Who stands for a place that nobody looked at."""
    step, looks = 1, 0
    passed = different = before = at = last = 0
    for at, pair in enumerate(zip(one.tolist(), other.tolist(), strict=True)):
        if different >= enough or looks >= MOST_LOOKED:
            break
        if second_look.knows(*pair):
            seen[at] = "same"
        elif passed:
            passed_by[at] = last
            passed -= 1
        else:
            seen[at] = second_look.at(*pair, firmly=different < FIRM)
            last, passed, looks = at, step - 1, looks + 1
            different += seen[at] not in ("same", None)
            if looks % _CHUNK == 0:
                if looks >= UNTHINNED and 2 * (different - before) < _CHUNK:
                    step *= 2
                before = different
    else:
        at = len(one)
    stands_for.update(passed_by.values())
    other_places = [place for place, verdict in seen.items() if verdict not in ("same", None)]
    near = np.searchsorted(np.cumsum([1 + stands_for[place] for place in other_places]), FIRM)
    until = other_places[near] if near < len(other_places) else at
    more = 0
    for place in reversed(passed_by):
        pair = int(one[place]), int(other[place])
        is_known = second_look.knows(*pair)
        if is_known or (place < until and more < FILLED):
            more += not is_known
            seen[place] = "same" if is_known else second_look.at(*pair, firmly=True)
            stands_for[passed_by[place]] -= 1
    places = sorted(place for place, verdict in seen.items() if verdict is not None)
    chosen = np.array(places, np.int64)
    same = np.array(
        [
            seen[place] == "same" or second_look.knows(int(one[place]), int(other[place]))
            for place in places
        ],
        bool,
    )
    return LookedPairs(
        images=images,
        one=one[chosen],
        other=other[chosen],
        cosine=cosines[chosen],
        weight=np.array([1 + stands_for[place] for place in places], np.float64),
        same=same,
        unsure=np.array([seen[place] == "unsure" for place in places], bool) & ~same,
        looks=looks + more,
        lowest=float(cosines[at - 1]) if len(one) else 1.0,
    )


def nearest_pairs(
    vectors: Float32[np.ndarray, "m d"], most: int, apart: Bool[np.ndarray, " m"] | None = None
) -> Pairs:
    """Return the `most` pairs of highest cosine of unit vectors: first and second row, cosine.

    Two rows that are both `apart` are no pair. Sorted by falling cosine, ties by rows; the first
    row is the smaller one.
    """
    pairs, products = np.empty(0, np.int64), np.empty(0, np.float32)
    count = len(vectors)
    for start in range(0, count, _BLOCK):
        block = vectors[start : start + _BLOCK] @ vectors[start:].T
        block[np.tril_indices(len(block), 0, block.shape[1])] = -np.inf
        if apart is not None:
            rows = apart[start : start + len(block)]
            block[np.ix_(np.flatnonzero(rows), np.flatnonzero(apart[start:]))] = -np.inf
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
