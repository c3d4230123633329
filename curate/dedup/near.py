"""Stage dedup: near copies by search inside clusters, or among the nearest of the whole pool.

Units: `search` (map over ranges of clusters) gives edges between images, `groups.py` makes groups
of them. Edges are pairs of *ranks* (0 is the best image), worse before better. Which clusters are
visited is the rule of `probes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Int8, Int64, Integer
from pydantic import BaseModel, ConfigDict, Field, model_validator

from curate.catalogue.collection import Collection
from curate.dedup.groups import COVERED, EDGES, FORGOTTEN, EdgeBuffer
from curate.dedup.hashes import HashName
from curate.dedup.keep import POLICIES, RANK, PolicyName
from curate.dedup.most_similar import MostSimilar
from curate.dedup.probes import MarginProbes, NearestCells, Probes
from curate.neighbours.cluster import AXES, Clusters, LoadedClusters
from curate.neighbours.search import (
    Searchable,
    cosines,
    heads,
    joined,
    nearest,
    neighbours,
    unit,
    use_threads,
)
from shared.embedders import Threshold
from shared.errors import LvdError

VERSION = 5
ABSURD_NEIGHBOURS = 5
ALWAYS_COMPARED, POOL_COMPARED = 4_096, 65_536


class DedupSettings(BaseModel):
    """What counts as a copy, and how hard copies are looked for."""

    model_config = ConfigDict(extra="forbid")

    embedder: str | None = None
    """What copies are found by; by default the pipeline's `embedder`, else `bundled-copies`."""
    threshold: Threshold | None = None
    """Cosine from which two images are copies, inclusive. Default: the embedder's own."""
    precision: float = Field(0.99, gt=0, lt=1)
    """Share of what is called copies that has to be right; decides a threshold that is measured."""
    groups: Literal["greedy", "components"] = "greedy"
    """greedy: every member reaches the threshold with its representative. components: chains."""
    hash: HashName | Literal["none"] = "none"
    """Images of one hash are copies before any vector is compared: of them only the best takes part
    in the search, and the others follow it into its group, whatever their cosine. pca: of a grey picture of 16 x 16, the signs along 64 principal components of the
    pool; phash: the 64 bits of `imagehash`. Flat pictures have no hash. On crawl-small, whose truth
    does not list all copies, pca found 172 and phash 204, of which 3 and 4 are false by it, all
    charts; on the built-in sample 80 and 97, and among 20,000 photographs of Tiny-ImageNet none, with
    none false."""
    keep: PolicyName = "resolution"
    """Which image of a group stands for it: the one of most pixels (then bytes), of most `bytes`
    (then pixels), of most `metadata` (caption and URL, then the longest caption), one at `random`
    (by `seed`), or, of components, the one of most `centrality` (the highest mean cosine with the
    others). Ties go to the first key."""
    chain_floor: float | None = Field(None, ge=-1, le=1)
    """Of components, the cosine that a member has to reach with its representative, inclusive: the
    others leave the group, and are grouped anew among themselves. Default: none."""
    search: Literal["clusters", "pool"] = "clusters"
    """clusters: all that reach the threshold, in a vector's cluster and beyond its border. pool: the
    `neighbours` most similar, in the clusters of the nearest centroids, as the paper's."""
    neighbours: int = Field(64, ge=1)
    """Of a search of the pool, the images that one is joined with at most."""
    probes: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """At most as many clusters are searched for a vector, its own included. auto: ten, or as many
    as hold `ALWAYS_COMPARED` images (of a pool `POOL_COMPARED`), so that a small crawl is searched
    whole."""
    edges_per_image: int = Field(64, ge=1)
    """Edges held for an image at a time; groups larger than this take another pass."""
    recall_sample: int = Field(256, ge=0)
    """Images whose copies are looked for in all others too, to measure the recall."""
    max_pair_share: float = Field(0.01, gt=0, le=1)
    """The run stops when more of the pairs of different images than this reach the threshold."""
    seed: int = 0

    @model_validator(mode="after")
    def _groups_as_they_can_be(self) -> DedupSettings:
        needs = {
            "keep: centrality": POLICIES[self.keep].central,
            "chain_floor": self.chain_floor is not None,
            "search: pool": self.search == "pool",
        }
        wrong = [setting for setting, is_said in needs.items() if is_said]
        if wrong and self.groups == "greedy":
            raise ValueError(
                f"{wrong[0]} is for groups: components, not for greedy ones, which are made around "
                "their representatives: set dedup.groups=components, or leave it out"
            )
        return self


def search(
    collection: Collection,
    ranks: Path,
    clusters: Clusters,
    first: int,
    last: int,
    threshold: float,
    settings: DedupSettings,
    status: Path | None,
    threads: int,
    *,
    out: Path,
) -> dict:
    """Write the edges of the vectors in clusters `first` to `last`: int64 ranks [e, 2].

    `forgotten.npy` is a forest of what connects ranks beside these (`groups.EdgeBuffer`).

    `ranks` is what `keep.rank_contents` left. `status` is what earlier passes left (see `groups.py`): images that are covered neither ask nor
    answer. (A representative then has no better neighbour, so it is the worse end of no edge.)
    """
    use_threads(threads)
    loaded = clusters.load()
    rank = np.load(ranks / RANK, mmap_mode="r")
    state = np.load(status / "status.npy", mmap_mode="r") if status else None
    edges = EdgeBuffer(settings.groups, settings.edges_per_image)
    asking = [_alive(loaded.of(own), state) for own in range(first, last)]
    queries = joined(asking)
    own = np.repeat(np.arange(first, last), [len(members) for members in asking])
    probes = _probes(loaded, threshold, settings)
    kept = MostSimilar(settings.neighbours) if settings.search == "pool" else None
    for visited, rows in _visits(queries, own, probes):
        base = _alive(loaded.of(visited), state)
        for row, found in neighbours(queries, rows, base, threshold):
            a, b = rank[queries.numbers[row]], rank[base.numbers[found]]
            if kept is None:
                edges.add(np.maximum(a, b), np.minimum(a, b))
            else:
                kept.add(a, b, cosines(queries, row, base, found))
    if kept is not None:
        a, b = kept.result()
        edges.add(np.maximum(a, b), np.minimum(a, b))
    found, truncated = edges.result()
    np.save(out / EDGES, found)
    np.save(out / FORGOTTEN, edges.forgotten())
    np.save(out / "truncated.npy", truncated)
    return {"edges": len(found), "truncated": len(truncated)}


def _probes(loaded: LoadedClusters, threshold: float, settings: DedupSettings) -> Probes:
    in_pool = settings.search == "pool"
    compared = POOL_COMPARED if in_pool else ALWAYS_COMPARED
    cap = max(10, -(-compared * len(loaded) // max(1, loaded.images)))
    if isinstance(settings.probes, int):
        cap = settings.probes
    if in_pool:
        return NearestCells(loaded.centroids, cap)
    return MarginProbes(loaded.centroids, threshold, cap)


def _visits(
    queries: Searchable, own: Int64[np.ndarray, " n"], probes: Probes
) -> Iterator[tuple[int, Integer[np.ndarray, " _"]]]:
    """Yield each visited cluster with the rows of the queries, of clusters `own`, that visit it."""
    clusters, rows = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for cluster in np.unique(own).tolist():
        home = np.flatnonzero(own == cluster)
        for at in range(0, len(home), 4_096):
            some = home[at : at + 4_096]
            row, visited = np.nonzero(probes.of(queries.unit(some), cluster))
            clusters.append(visited.astype(np.int32))
            rows.append(some[row].astype(np.int32))
    visited, row = np.concatenate(clusters), np.concatenate(rows)
    order = np.argsort(visited, kind="stable")
    for where in np.split(order, np.flatnonzero(np.diff(visited[order])) + 1):
        if len(where):
            yield int(visited[where[0]]), row[where]


def _alive(members: Searchable, state: Int8[np.ndarray, " n"] | None) -> Searchable:
    if state is None:
        return members
    return members[np.flatnonzero(state[members.numbers] != COVERED)]


def sanity(collection: Collection, threshold: float, settings: DedupSettings, *, out: Path) -> dict:
    """Stop with an explanation when an absurd share of sampled pairs reaches the threshold."""
    rng = np.random.default_rng(settings.seed)
    usable = collection.usable
    sample = np.sort(rng.choice(usable, min(len(usable), 2_000), replace=False))
    vectors = Searchable(collection.vectors(sample), sample)
    found = neighbours(vectors, np.arange(len(vectors)), vectors, threshold)
    pairs = sum(len(row) for row, _ in found)
    share = pairs / max(1, len(vectors) * (len(vectors) - 1))
    each = share * (len(usable) - 1)
    if share > settings.max_pair_share and each >= ABSURD_NEIGHBOURS:
        raise LvdError(
            f"dedup.threshold {threshold:.4f} would call {share:.1%} of all pairs of images copies "
            f"(about {each:.0f} copies of every image; more than {settings.max_pair_share:.0%} is "
            "absurd): it does not fit this embedder. Run `lvd-curate calibrate`, set a higher "
            "dedup.threshold, name a trained embedder, or raise dedup.max_pair_share"
        )
    return {"pairs": int(pairs // 2), "share": share}


def recall(
    collection: Collection,
    clusters: Clusters,
    threshold: float,
    settings: DedupSettings,
    threads: int,
    *,
    out: Path,
) -> dict:
    """Measure on a sample, against exact search, the share of pairs that the probes find.

    What a search of the pool loses by its bound on `neighbours` is not counted.
    The sample shrinks for collections of more than 10 million images, so that the exact search
    stays below 2.5e9 cosines.
    """
    use_threads(threads)
    usable = collection.usable
    size = min(settings.recall_sample, len(usable), int(2.5e9) // max(1, len(usable)))
    rng = np.random.default_rng(settings.seed)
    sample = np.sort(rng.choice(usable, size, replace=False))
    if not size:
        return {"queries": 0, "pairs": 0, "found": 0, "recall": None}
    loaded = clusters.load()
    stored = collection.vectors(sample)
    vectors = unit(stored)
    axes = np.load(clusters.centers / AXES)
    asked = Searchable(stored, sample, heads(vectors, axes))
    home = nearest(vectors, loaded.centroids)
    asks = np.empty((size, len(loaded)), bool)
    probes = _probes(loaded, threshold, settings)
    for own in np.unique(home).tolist():
        asks[home == own] = probes.of(vectors[home == own], own)
    pairs = found = 0
    for cluster in range(len(loaded)):
        base = loaded.of(cluster)
        for row, near in neighbours(asked, np.arange(size), base, threshold):
            pairs += len(row)
            unasked = ~asks[row, cluster]
            found += len(row) - int(unasked.sum())
            back = base, near[unasked], home[row[unasked]]
            found += _found_back(*back, cluster, probes)
    return {
        "queries": int(size),
        "pairs": pairs,
        "found": found,
        "recall": found / pairs if pairs else None,
    }


def _found_back(
    members: Searchable,
    rows: Integer[np.ndarray, " n"],
    homes: Integer[np.ndarray, " n"],
    own: int,
    probes: Probes,
) -> int:
    """Return how many of the `rows` of the cluster `own` are searched in the clusters `homes`."""
    ends, place = np.unique(rows, return_inverse=True)
    count = 0
    for at in range(0, len(ends), 4_096):
        asks = probes.of(members.unit(ends[at : at + 4_096]), own)
        here = (place >= at) & (place < at + 4_096)
        count += int(asks[place[here] - at, homes[here]].sum())
    return count
