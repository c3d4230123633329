"""Stage holdout, its second step: copies of evaluation images, the copies of these, and so on.

As DINOv2 does (arXiv 2304.07193, appendix A), a component of copies that touches an evaluation image
is dropped whole, whatever groups its images are in: greedy groups part such chains, and so does
`dedup.chain_floor`. What a hash or a look made copies are links, too. Images of included seeds are links
like those of the crawl, and go as these do. All are numbered as one (`several.py`).

Units: `begin` (reduce), then for each link of the chains `look` (map over ranges of clusters: an exact
search for what was dropped last), `look_in_seed` (map over blocks of included seeds) and `follow`
(reduce), at last `write_chains` (reduce). A reduce holds some 30 bytes for each dropped image.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from curate.catalogue.collection import Catalogued, Collection, Numbers
from curate.dedup.holdout import Held
from curate.dedup.several import Several
from curate.dedup.stage import Deduplicated
from curate.neighbours.cluster import Clustered
from curate.neighbours.clusters import Clusters
from curate.neighbours.search import Searchable, cosine, cosines, neighbours, unit, use_threads
from curate.stage import Runner, Stage, Unit

VERSION = 2
LINKS, FOUND = "links.npz", "found.npz"


@dataclass(frozen=True)
class Chains:
    """The images of a dataset that holdouts drop, and what leads from each to a holdout image.

    `number` is the dataset's own, rising; `following` and `last` are those of `Several`. An image that is
    no copy of one itself is a copy of the image `following`, at cosine `similarity`, which is nearer to
    the end of the chain; of others these are the image itself and 1. The chain ends at the image `last`,
    which is a copy of image `row` of the holdout set `place`, at cosine `to_holdout`.
    """

    number: Int64[np.ndarray, " n"]
    following: Int64[np.ndarray, " n"]
    similarity: Float32[np.ndarray, " n"]
    last: Int64[np.ndarray, " n"]
    place: Int64[np.ndarray, " n"]
    row: Int64[np.ndarray, " n"]
    to_holdout: Float32[np.ndarray, " n"]


@dataclass(frozen=True)
class Dropped:
    """Where `follow_copies` left what holdouts drop; nowhere without a holdout."""

    folder: Path | None = None
    address: str | None = None


def follow_copies(
    runner: Runner,
    datasets: Sequence[Catalogued],
    clustered: Clustered,
    held: Sequence[Held],
    copies: Deduplicated,
    threshold: float,
    threads: int,
) -> Dropped:
    """Find what chains of copies connect with the copies of evaluation images.

    `datasets` are the crawl and the included seeds, `held` what each of them holds of evaluation sets,
    and `copies` those of the crawl.
    """
    addresses = [[each.address for each in held], copies.address]
    stage = Stage("holdout", ["chains", VERSION], addresses, [threshold, threads])
    images = Several(tuple(each.collection for each in datasets))
    clusters, hits = clustered.clusters, [list(each.folders) for each in held]
    home, stands = runner.folder(stage), copies.hashed.stands if copies.hashed else None
    looked = copies.looked.confirmed if copies.looked else None
    links = home / "links-0000"
    args: tuple[Any, ...] = (images, hits)
    [told] = runner.run(stage, begin, [Unit(links.name, args)])
    for number in itertools.count(1):
        if not told["open"]:
            break
        units = [
            Unit(
                f"look-{number:04d}-{first:08d}",
                (images, clusters, links, first, last, threshold, threads),
            )
            for first, last in clusters.ranges
        ]
        of_seeds = [
            Unit(
                f"look-{number:04d}-seed-{place:05d}-{start:012d}",
                (images, place, links, start, stop, threshold, threads),
            )
            for place, seed in enumerate(images.collections)
            for start, stop in (seed.blocks() if place else ())
        ]
        note = f"copies of copies, {number}"
        runner.run(stage, look, units, note=note)
        if of_seeds:
            runner.run(stage, look_in_seed, of_seeds, note=note)
        found = [home / unit.name for unit in (*units, *of_seeds)]
        args = (images, stands, looked, links, found)
        links = home / f"links-{number:04d}"
        [told] = runner.run(stage, follow, [Unit(links.name, args)])
    args = (images, links, hits)
    runner.run(stage, write_chains, [Unit("chains", args)])
    return Dropped(home / "chains", stage.address)


def load_chains(folder: Path | None, place: int = 0) -> Chains:
    """Return what `write_chains` wrote of a dataset, by default the crawl; of no folder no chains."""
    if folder is None:
        none, no_cosine = np.empty(0, np.int64), np.empty(0, np.float32)
        return Chains(none, none, no_cosine, none, none, none, no_cosine)
    with np.load(folder / _chains_of(place)) as found:
        return Chains(**{field.name: found[field.name] for field in fields(Chains)})


@dataclass(frozen=True)
class _Links:
    """What is dropped so far, one image of each content, by rising number; `Chains` has the words."""

    number: Int64[np.ndarray, " n"]
    following: Int64[np.ndarray, " n"]
    similarity: Float32[np.ndarray, " n"]
    last: Int64[np.ndarray, " n"]
    is_open: Bool[np.ndarray, " n"]
    """Whether the copies of the image are still to be looked for."""

    def has(self, numbers: Numbers) -> Bool[np.ndarray, " m"]:
        """Return which of these are dropped."""
        return np.isin(numbers, self.number)

    def save(self, out: Path) -> dict[str, int]:
        order = np.argsort(self.number)
        columns: dict[str, Any] = {name: array[order] for name, array in vars(self).items()}
        np.savez(out / LINKS, **columns)
        return {"dropped": len(self.number), "open": int(self.is_open.sum())}

    def go_on(self, number: Numbers, following: Numbers, similarity: np.ndarray) -> _Links:
        """Return these and more, which alone are open."""
        last = self.last[np.searchsorted(self.number, following)]
        is_open = np.arange(len(self.number) + len(number)) >= len(self.number)
        return _Links(
            np.concatenate([self.number, number]),
            np.concatenate([self.following, following]),
            np.concatenate([self.similarity, similarity.astype(np.float32)]),
            np.concatenate([self.last, last]),
            is_open,
        )


def _load_links(folder: Path) -> _Links:
    with np.load(folder / LINKS) as found:
        return _Links(**{field.name: found[field.name] for field in fields(_Links)})


def _chains_of(place: int) -> str:
    return f"chains-{place}.npz"


def begin(images: Several, holdout: list[list[Path]], *, out: Path) -> dict[str, int]:
    """Write the links of the copies of holdout images themselves; `holdout` has the hits by dataset."""
    first = [
        data.canonical[_load_hits(folders)[0][:, 0]] + start
        for data, start, folders in zip(images.collections, images.starts, holdout, strict=True)
    ]
    number = np.unique(np.concatenate(first))
    ones, is_open = np.ones(len(number), np.float32), np.ones(len(number), bool)
    return _Links(number, number, ones, number, is_open).save(out)


def look(
    images: Several,
    clusters: Clusters,
    links: Path,
    first: int,
    last: int,
    threshold: float,
    threads: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Write the images of the clusters `first` to `last` that are copies of what was dropped last.

    `number`, the most similar of them, `following`, ties to the first, and the cosine.
    """
    use_threads(threads)
    loaded = clusters.load()
    bases = (loaded.of(cluster) for cluster in range(first, last))
    return _write_copies(images, links, bases, threshold, out)


def look_in_seed(
    images: Several,
    place: int,
    links: Path,
    start: int,
    stop: int,
    threshold: float,
    threads: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Write what `look` does, of the images `start` to `stop` of an included seed."""
    use_threads(threads)
    seed, own = images.collections[place], np.arange(start, stop)
    own = own[seed.canonical[start:stop] == own]
    base = Searchable(seed.vectors(own), own + images.starts[place])
    return _write_copies(images, links, [base], threshold, out)


def _write_copies(
    images: Several, links: Path, bases: Iterable[Searchable], threshold: float, out: Path
) -> dict[str, int]:
    dropped = _load_links(links)
    asking = dropped.number[dropped.is_open]
    asked = Searchable(images.vectors(asking), asking)
    numbers, following, similarity = [], [], []
    for base in bases:
        best = np.full(len(base), -2, np.float32)
        by = np.full(len(base), -1, np.int64)
        for row, found in neighbours(asked, np.arange(len(asked)), base, threshold):
            closeness = cosines(asked, row, base, found)
            order = np.lexsort((row, -closeness, found))
            order = order[np.diff(found[order], prepend=-1) > 0]
            order = order[closeness[order] > best[found[order]]]
            best[found[order]], by[found[order]] = closeness[order], asking[row[order]]
        new = np.flatnonzero(by >= 0)
        new = new[~dropped.has(base.numbers[new])]
        numbers.append(base.numbers[new])
        following.append(by[new])
        similarity.append(best[new])
    np.savez(
        out / FOUND,
        number=np.concatenate(numbers),
        following=np.concatenate(following),
        similarity=np.concatenate(similarity),
    )
    return {"found": sum(map(len, numbers))}


def follow(
    images: Several,
    stands: Path | None,
    looked: Path | None,
    links: Path,
    found: Sequence[Path],
    *,
    out: Path,
) -> dict[str, int]:
    """Write the links with those that `look` found.

    Where it found none, with copies by hash, which no cosine need reach: `stands` says by image number
    who has one hash, where these are copies. Where there are none either, with the pairs that a look
    at their pixels confirmed: `looked` has them. Both are of the crawl.
    """
    crawl = images.collections[0]
    dropped = _load_links(links)
    parts = [np.load(folder / FOUND) for folder in found]
    number, following, similarity = (
        np.concatenate([part[name] for part in parts])
        for name in ("number", "following", "similarity")
    )
    if stands is not None and not len(number):
        number, following = _copies_by_hash(crawl, np.load(stands, mmap_mode="r"), dropped)
        similarity = cosine(unit(images.vectors(number)), unit(images.vectors(following)))
    if looked is not None and not len(number):
        number, following = _copies_by_look(crawl, np.load(looked), dropped)
        similarity = cosine(unit(images.vectors(number)), unit(images.vectors(following)))
    return dropped.go_on(number, following, similarity).save(out)


def _copies_by_hash(
    crawl: Collection, stands: Int64[np.ndarray, " all"], dropped: _Links
) -> tuple[Numbers, Numbers]:
    """Return the contents that have the hash of a dropped one, and the first of these."""
    of_crawl = dropped.number[dropped.number < len(crawl)]
    own = stands[of_crawl]
    hashed = np.flatnonzero(own >= 0)
    known, first = np.unique(own[hashed], return_index=True)
    number = np.flatnonzero(np.isin(stands, known))
    number = number[(crawl.canonical[number] == number) & ~dropped.has(number)]
    return number, of_crawl[hashed[first[np.searchsorted(known, stands[number])]]]


def _copies_by_look(
    crawl: Collection, pairs: Int64[np.ndarray, "p 2"], dropped: _Links
) -> tuple[Numbers, Numbers]:
    """Return the contents that a look found to be one with a dropped one, and the first of these."""
    pairs = crawl.canonical[pairs]
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[~dropped.has(both[:, 0]) & dropped.has(both[:, 1])]
    both = both[np.lexsort(both.T[::-1])]
    number, first = np.unique(both[:, 0], return_index=True)
    return number, both[first, 1]


def write_chains(
    images: Several, links: Path, holdout: list[list[Path]], *, out: Path
) -> dict[str, int]:
    """Write the `Chains` of all images of each dataset, those of the same bytes too."""
    dropped = _load_links(links)
    parts = [_load_hits(folders) for folders in holdout]
    moved = [
        hits + np.array([start, 0, 0])
        for (hits, _), start in zip(parts, images.starts, strict=True)
    ]
    hits, to_holdout = np.concatenate(moved), np.concatenate([each[1] for each in parts])
    order = np.argsort(hits[:, 0])
    hits, to_holdout = hits[order], to_holdout[order]
    count = 0
    for place, (data, start) in enumerate(zip(images.collections, images.starts, strict=True)):
        of_data = dropped.number[dropped.number >= start] - start
        own = np.flatnonzero(np.isin(data.canonical, of_data))
        number = own + start
        row = np.searchsorted(dropped.number, data.canonical[own] + start)
        following, last = dropped.following[row], dropped.last[row]
        is_hit = np.isin(number, hits[:, 0])
        following[is_hit] = last[is_hit] = number[is_hit]
        hit = np.searchsorted(hits[:, 0], last)
        chains = Chains(
            *(own, following, dropped.similarity[row], last),
            *(hits[hit, 1], hits[hit, 2], to_holdout[hit]),
        )
        np.savez(out / _chains_of(place), **vars(chains))
        count += len(own)
    return {"hits": len(hits), "dropped": count}


def _load_hits(
    folders: Sequence[Path],
) -> tuple[Int64[np.ndarray, "h 3"], Float32[np.ndarray, " h"]]:
    hits = [np.empty((0, 3), np.int64), *(np.load(folder / "hits.npy") for folder in folders)]
    none = np.empty(0, np.float32)
    similarity = [none, *(np.load(folder / "similarity.npy") for folder in folders)]
    return np.concatenate(hits), np.concatenate(similarity)
