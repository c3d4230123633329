"""Stage holdout, its second step: copies of evaluation images, the copies of these, and so on.

As DINOv2 does (arXiv 2304.07193, appendix A), a component that touches an evaluation image is dropped
whole. Components as groups are these components; greedy groups part them, so that what a search for
copies connects counts, and not the group alone.

A reduce over the dropped images: about 60 bytes each, and the vectors of one component at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from curate.catalogue.collection import Catalogued, Collection
from curate.dedup.holdout import Held
from curate.dedup.stage import Deduplicated
from curate.neighbours.search import cosine, top_k, unit, use_threads
from curate.stage import Runner, Stage, Unit

VERSION = 1
CHAINS = "chains.npz"

Rows = Int64[np.ndarray, " _"]


@dataclass(frozen=True)
class Chains:
    """The images that holdouts drop, by rising number, and what leads from each to a holdout image.

    An image that is no copy of one itself is a copy of the image `following`, at cosine `similarity`,
    which is nearer to the end of the chain; of others these are the image itself and 1. The chain
    ends at the image `last`, which is a copy of image `row` of the holdout set `place`, at cosine
    `to_holdout`.
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
    """Where `trace_chains` left what holdouts drop; nowhere without a holdout."""

    folder: Path | None = None
    address: str | None = None


def follow_copies(
    runner: Runner,
    crawl: Catalogued,
    held: Held,
    copies: Deduplicated,
    threshold: float,
    threads: int,
) -> Dropped:
    """Find what is connected with the copies of evaluation images."""
    stage = Stage("holdout", ["chains", VERSION], [held.address, copies.address], threads)
    stands = copies.hashed.stands if copies.hashed else None
    args = (crawl.collection, copies.connected, stands, list(held.folders), threshold, threads)
    runner.run(stage, trace_chains, [Unit("chains", args)])
    return Dropped(runner.folder(stage) / "chains", stage.address)


def load_chains(folder: Path | None) -> Chains:
    """Return what `trace_chains` wrote; of no folder no chains."""
    if folder is None:
        none, no_cosine = np.empty(0, np.int64), np.empty(0, np.float32)
        return Chains(none, none, no_cosine, none, none, none, no_cosine)
    with np.load(folder / CHAINS) as found:
        return Chains(**{field.name: found[field.name] for field in fields(Chains)})


def trace_chains(
    crawl: Collection,
    connected: Path,
    stands: Path | None,
    holdout: list[Path],
    threshold: float,
    threads: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Write the `Chains` of all images that are `connected` with a hit of the holdouts.

    `stands` says by image number who has one hash, where copies are found by hash too.
    """
    use_threads(threads)
    hits, to_holdout = _load_hits(holdout)
    roots = np.load(connected, mmap_mode="r")[:]
    number = np.flatnonzero(np.isin(roots, roots[hits[:, 0]]) & (roots >= 0))
    count = len(number)
    of_hit = np.full(count, -1)
    of_hit[np.searchsorted(number, hits[:, 0])] = np.arange(len(hits))
    following, similarity = np.arange(count), np.ones(count, np.float32)
    canonical = np.searchsorted(number, crawl.canonical[number])
    hashed = np.full(count, -1) if stands is None else np.load(stands, mmap_mode="r")[number]
    contents = np.flatnonzero(canonical == np.arange(count))
    contents = contents[np.lexsort((crawl.place[number[contents]], roots[number[contents]]))]
    for rows in np.split(contents, np.flatnonzero(np.diff(roots[number[contents]])) + 1):
        if (of_hit[rows] < 0).any():
            stored = crawl.vectors(number[rows])
            next_rows, closeness, ends = trace(stored, hashed[rows], of_hit[rows] >= 0, threshold)
            following[rows], similarity[rows] = rows[next_rows], closeness
            of_hit[rows] = of_hit[rows[ends]]
    indirect = np.flatnonzero(of_hit < 0)
    for told in (following, similarity, of_hit):
        told[indirect] = told[canonical[indirect]]
    chains = Chains(
        *(number, number[following], similarity),
        *(hits[of_hit, 0], hits[of_hit, 1], hits[of_hit, 2], to_holdout[of_hit]),
    )
    np.savez(out / CHAINS, **vars(chains))
    return {"hits": len(hits), "dropped": count}


def trace(
    stored: Float[np.ndarray, "n d"],
    hashed: Rows,
    reached: Bool[np.ndarray, " n"],
    threshold: float,
) -> tuple[Rows, Float32[np.ndarray, " n"], Rows]:
    """Return of each row of a component the next one on a shortest chain to a row that is `reached`.

    Beside it the cosine of the two, and the row where the chain ends. Rows are linked that reach
    the threshold, the most similar first, then those of one hash (not -1); ties go to the first row.
    What nothing links, as in components that a floor parts, follows the most similar row.
    """
    following, ends = np.arange(len(stored)), np.arange(len(stored))
    similarity = np.ones(len(stored), np.float32)
    there, left = np.flatnonzero(reached), np.flatnonzero(~reached)
    newest = there
    while len(left):
        found, at = top_k(stored[left], stored[newest], 1)
        closeness, to = found[:, 0], newest[at[:, 0]]
        linked = closeness >= np.float32(threshold)
        by_hash = np.flatnonzero(
            ~linked & (hashed[left] >= 0) & np.isin(hashed[left], hashed[newest])
        )
        known, first = np.unique(hashed[newest], return_index=True)
        to[by_hash] = newest[first[np.searchsorted(known, hashed[left[by_hash]])]]
        closeness[by_hash] = cosine(unit(stored[left[by_hash]]), unit(stored[to[by_hash]]))
        linked[by_hash] = True
        if not linked.any():
            found, at = top_k(stored[left], stored[there], 1)
            closeness, to = found[:, 0], there[at[:, 0]]
            linked[:] = True
        newest = left[linked]
        following[newest], similarity[newest] = to[linked], closeness[linked]
        ends[newest] = ends[to[linked]]
        there, left = np.concatenate([there, newest]), left[~linked]
    return following, similarity, ends


def _load_hits(
    folders: Sequence[Path],
) -> tuple[Int64[np.ndarray, "h 3"], Float32[np.ndarray, " h"]]:
    hits = [np.empty((0, 3), np.int64), *(np.load(folder / "hits.npy") for folder in folders)]
    none = np.empty(0, np.float32)
    similarity = [none, *(np.load(folder / "similarity.npy") for folder in folders)]
    return np.concatenate(hits), np.concatenate(similarity)
