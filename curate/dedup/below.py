"""Pairs of images that the threshold leaves apart and that may be copies all the same.

Only images that stand for themselves are asked, so that no pair of one group is told. Units: `set_floor`
(reduce), `find_pairs` (map over ranges of clusters: the search of `near.py` at the floor, for what its
`ask` left), `choose_pairs` (reduce). Of each image the `NEAREST` most similar better ones count, so that a heap of look-alikes of
one pattern does not take all looks: 20 bytes for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64, Integer

from curate.catalogue.collection import Collection, Numbers
from curate.dedup.bar import Bar
from curate.dedup.groups import REPRESENTATIVE
from curate.dedup.keep import NUMBER, RANK
from curate.dedup.most_similar import MostSimilar
from curate.dedup.near import DedupSettings
from curate.dedup.visits import alive, questions
from curate.neighbours.clusters import Clusters
from curate.neighbours.search import Searchable, cosines, neighbours, use_threads

VERSION = 6
NEAREST = 2
FURTHER, FURTHEST = 1.5, 2.5
"""The floor is so much further from 1 than the threshold, where no setting says it: of so many looks as a
setting allows, and of as many as pay."""
FEW, LOW = 4_096, 0.5
"""Of so few images, which are compared with one another whatever the floor, it is not above this where looks
go on while they pay: one pair that calibration mistakes moves the threshold of a small crawl far."""
SAMPLED = 2_000
CROWDED = 16
"""Images that reach the floor with one, on average, at most: beyond these the floor is raised."""
ROUND, MOST, PAYS = 0.02, 0.2, 0.05
"""Where nothing says how many pairs are looked at: for an image of the crawl in a round, and in all; and
the share of a round that has to be confirmed for another one."""
FEWEST = 20
"""Pairs of a round at least, of ten: the few likeliest ones of a small crawl may be look-alikes, as frames of
one scene are, and tell nothing of the next."""
PAIRS, NEAR = "pairs.npy", "near.npz"


def budget(looks: float | Literal["auto"], images: int) -> tuple[int, int]:
    """Return how many pairs of so many images are looked at in all at most, and how many in a round."""
    if looks == "auto":
        least = round(FEWEST / ROUND)
        return int(MOST * max(images, least)), int(ROUND * max(images, least))
    return (most := int(looks * images)), most


def look_while_it_pays(pairs: int, in_round: int, look: Callable[[int, int], int]) -> int:
    """Look at pairs, the likeliest first, round after round; return how many were looked at.

    `look` is given the first pair of a round and the one behind its last, and returns how many of them
    it confirmed: where these are less than `PAYS` of the round, no other follows.
    """
    for first in range(0, pairs, max(1, in_round)):
        last = min(first + in_round, pairs)
        if look(first, last) < PAYS * (last - first):
            return last
    return pairs


def set_floor(
    collection: Collection,
    groups: Path,
    threshold: float,
    settings: DedupSettings,
    threads: int,
    *,
    out: Path,
) -> dict[str, float]:
    """Return the `floor`: the cosine from which pairs are looked for, inclusive.

    It is `look_floor`, or 1 - 1.5 (1 - threshold), or 1 - 2.5 (1 - threshold) where looks go on while they
    pay, then of `FEW` images at most `LOW`, but not below `chain_floor`, nor so low that of a
    seeded sample of the representatives of `groups` more than `CROWDED` others reach it with one.
    """
    use_threads(threads)
    status = np.load(groups / "status.npy", mmap_mode="r")[:]
    asking = np.flatnonzero(status == REPRESENTATIVE)
    sample = draw_sample(asking, settings.seed)
    vectors = Searchable(collection.vectors(sample), sample)
    return {"floor": floor_of(vectors, len(asking), threshold, settings)}


def draw_sample(asking: Numbers, seed: int) -> Numbers:
    """Return a sample of the images that stand for themselves, by rising number."""
    size = min(len(asking), SAMPLED)
    return np.sort(np.random.default_rng(seed).choice(asking, size, replace=False))


def floor_of(
    sample: Searchable, representatives: int, threshold: float, settings: DedupSettings
) -> float:
    """Return the floor, as `set_floor` has it, by a sample of so many representatives."""
    goes_on = settings.looks == "auto"
    further = 1 - (FURTHEST if goes_on else FURTHER) * (1 - threshold)
    if goes_on and representatives <= FEW:
        further = min(further, LOW)
    floor = max(-1.0, further if settings.look_floor is None else settings.look_floor)
    if settings.chain_floor is not None:
        floor = max(floor, settings.chain_floor)
    size, found = len(sample), [np.empty(0, np.float32)]
    for row, other in neighbours(sample, np.arange(size), sample, floor):
        found.append(cosines(sample, row, sample, other))
    reached = np.sort(np.concatenate(found))[::-1]
    allowed = int(CROWDED * size * (size - 1) / max(1, representatives - 1))
    if len(reached) > allowed:
        floor = float(np.nextafter(reached[allowed], np.float32(2)))
    return floor


def find_pairs(
    ranks: Path,
    clusters: Clusters,
    asked: list[Path],
    first: int,
    last: int,
    floor: float,
    bar: Bar,
    groups: Path,
    stays: int,
    threads: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Write the pairs of representatives of `groups` that reach the floor: `near.npz`.

    `pairs` int64 [p, 2], worse and better rank, and `similarity` float32 [p], of those that ask for the
    clusters `first` to `last` (`asked` has what `near.ask` left of all ranges). Two of the `stays` best
    ranks are no pair, and where drawn ones have a bar of their own, two of these: pixels say nothing of
    them.
    """
    use_threads(threads)
    loaded, rank = clusters.load(), np.load(ranks / RANK, mmap_mode="r")
    state = np.load(groups / "status.npy", mmap_mode="r")
    kept, drawn = MostSimilar(NEAREST), bar.is_drawn()
    for queries, visits in questions(clusters, asked, first, last, state):
        for visited, rows in visits:
            base = loaded.of(visited)
            base = base[alive(base, state)]
            add_pairs(kept, queries, rows, base, rank, floor, stays, drawn)
    worse, better, similarity = kept.result()
    np.savez(out / NEAR, pairs=np.stack([worse, better], 1), similarity=similarity)
    return {"pairs": len(worse)}


def add_pairs(
    kept: MostSimilar,
    queries: Searchable,
    rows: Integer[np.ndarray, " r"],
    base: Searchable,
    rank: Int64[np.ndarray, " n"],
    floor: float,
    stays: int = 0,
    drawn: Bool[np.ndarray, " n"] | None = None,
) -> None:
    """Give `kept` the pairs of `rows` of the queries and the base that reach the floor.

    `rank` is by the numbers of both, and so is `drawn`: two that are drawn are no pair.
    """
    for row, found in neighbours(queries, rows, base, floor):
        a, b = rank[queries.numbers[row]], rank[base.numbers[found]]
        worse, better = np.maximum(a, b), np.minimum(a, b)
        free = worse >= stays
        if drawn is not None:
            free &= ~(drawn[queries.numbers[row]] & drawn[base.numbers[found]])
        similarity = cosines(queries, row[free], base, found[free])
        kept.add(worse[free], better[free], similarity)


def choose_pairs(
    ranks: Path, found: Sequence[Path], most: int, in_round: int, *, out: Path
) -> dict[str, int]:
    """Write the `most` most similar pairs that were found, ties to the better ranks.

    `pairs.npy` int64 [p, 2]: numbers of a worse and a better image, of each `in_round` pairs in the order
    of the first, so that parts are read in turn, the most similar ones before others. Returns how many
    `pairs` there are, and how many were `near` enough.
    """
    kept = MostSimilar(NEAREST)
    for folder in found:
        with np.load(folder / NEAR) as near:
            worse, better = near["pairs"].T
            kept.add(worse, better, near["similarity"])
    pairs, near = most_similar(kept, np.load(ranks / NUMBER, mmap_mode="r"), most, in_round)
    np.save(out / PAIRS, pairs)
    return {"pairs": len(pairs), "near": near}


def most_similar(
    kept: MostSimilar, number_of: Numbers, most: int, in_round: int
) -> tuple[Int64[np.ndarray, "p 2"], int]:
    """Return of the pairs held the `most` most similar, as `choose_pairs` writes them, and how many are held.

    `number_of` is by rank.
    """
    worse, better, similarity = kept.result()
    order = np.lexsort((better, worse, -similarity))[:most]
    pairs = np.stack([number_of[worse[order]], number_of[better[order]]], 1)
    rounds = np.arange(len(pairs)) // max(1, in_round)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], rounds))], len(worse)
