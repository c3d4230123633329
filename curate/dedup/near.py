"""Stage dedup: near copies by search inside clusters, or among the nearest of the whole pool.

Units, both maps over ranges of clusters: `ask` says where the vectors of a range are searched, by the
rule of `probes.py`; `search` gives the edges between them and the vectors of another range, and
`groups.py` makes groups of these. Edges are pairs of *ranks* (0 is the best image), worse before
better.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Int8
from pydantic import BaseModel, ConfigDict, Field, model_validator

from curate.catalogue.collection import Collection
from curate.dedup.bar import Bar, Rows, copies
from curate.dedup.groups import COVERED, EdgeBuffer
from curate.dedup.hashes import HashName
from curate.dedup.keep import POLICIES, RANK, PolicyName
from curate.dedup.most_similar import MostSimilar
from curate.dedup.probes import HEAPS, Probes
from curate.dedup.visits import alive, own_visits, questions, thinned, write_visits
from curate.neighbours.clusters import Clusters, LoadedClusters
from curate.neighbours.heads import expect_products
from curate.neighbours.search import (
    Searchable,
    cosines,
    joined,
    use_threads,
)
from shared.embedders.settings import Threshold
from shared.errors import LvdError
from shared.storage.arrays import map_array

VERSION = 8
ABSURD_NEIGHBOURS = 5
COMPARED, POOL_COMPARED = 4_096, 65_536
OF_A_MILLION, GROWTH = 7_000, 0.5
"""Images of a crawl of a million that a vector is compared with, and the power of the number of images
by which they grow, so that about as much is found: more than 0.99 of the planted copies of clumped
vectors. By the sixth root more clusters are searched, whose size grows as the cube root."""


class DedupSettings(BaseModel):
    """What counts as a copy, and how hard copies are looked for."""

    model_config = ConfigDict(extra="forbid")

    embedder: str | None = None
    """What copies are found by; by default the pipeline's `embedder`, else `bundled-copies`."""
    threshold: Threshold | None = None
    """Cosine from which two images are copies, inclusive. Default: the embedder's own."""
    drawn_threshold: float | None = Field(None, ge=-1, le=1)
    """The same of two drawn pictures, such as charts of one template, which look alike and are none.
    Drawn is what has little entropy (`curate/catalogue/drawn.py`). Default: measured where `threshold`
    is, else that."""
    precision: float = Field(0.99, gt=0, lt=1)
    """Share of what is called copies that has to be right; decides a threshold that is measured."""
    groups: Literal["greedy", "components"] = "greedy"
    """greedy: every member reaches the threshold with its representative, but for what hashes and looks
    join. components: chains."""
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
    """At most as many clusters are searched for a vector, its own included: of the nearest, those that
    may hold a copy. auto: ten, or as many as hold 4,096 images, so that a small crawl is searched whole,
    or of n images 7 sqrt(n) where that is more; of a pool 65,536."""
    edges_per_image: int = Field(64, ge=1)
    """Edges held for an image at a time; groups larger than this take another pass."""
    looks: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """Pairs below the threshold whose pixels are looked at, for each image of the crawl at most: the
    most similar ones of images that stand for themselves. What is one picture for certain, and no drawing,
    is a copy. A look takes some 50 ms; 0: none. auto: 0.02, and 0.02 again as long as one in twenty
    of the last is one picture, up to 0.2; of fewer than 1,000 images as of these."""
    look_floor: float | None = Field(None, ge=-1, le=1)
    """The least cosine of a pair that is looked at, inclusive. Default: 2.5 times as far from 1 as the
    threshold (0.5 of 0.8), and not above 0.5 where 4,096 images or fewer stand for themselves; where
    `looks` is a number 1.5 times (0.7); where many images are that near to one another, higher."""
    recall_sample: int = Field(256, ge=0)
    """Images whose copies are looked for in all others too, to measure the completeness."""
    max_pair_share: float = Field(0.01, gt=0, le=1)
    """The run stops when more of the pairs of different images than this reach the threshold."""
    seed: int = 0

    @model_validator(mode="after")
    def _looks_below_the_threshold(self) -> DedupSettings:
        if self.look_floor is None:
            return self
        if not self.looks:
            raise ValueError("look_floor is for looks, and looks: 0 asks for none: leave one out")
        if isinstance(self.threshold, float) and self.look_floor >= self.threshold:
            raise ValueError(
                f"look_floor {self.look_floor:g} is not below the threshold {self.threshold:g}, so "
                "that nothing is looked at: lower it, or set looks: 0"
            )
        return self

    @model_validator(mode="after")
    def _drawn_ones_from_a_higher_cosine(self) -> DedupSettings:
        bar, of_drawn = self.threshold, self.drawn_threshold
        if of_drawn is not None and isinstance(bar, float | int) and of_drawn < bar:
            raise ValueError(
                f"drawn_threshold {of_drawn:g} is below the threshold {bar:g}, from which all images "
                "are copies: raise it, or leave it out"
            )
        return self

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


def ask(
    clusters: Clusters,
    heaps: Path | None,
    first: int,
    last: int,
    threshold: float,
    settings: DedupSettings,
    status: Path | None,
    threads: int,
    *,
    out: Path,
) -> dict[str, int]:
    """Write where the vectors in clusters `first` to `last` are searched, as `write_visits` has it.

    `heaps` is what `find_heaps` left, None for a search of the pool. `status` is what is decided before
    (see `groups.py`): images that are covered do not ask.
    """
    use_threads(threads)
    loaded = clusters.load()
    expect_search(clusters.images)
    state = map_array(status / "status.npy") if status else None
    probes = probes_of(loaded, heaps, threshold, settings)
    return write_visits(loaded, first, last, probes, state, out)


def search(
    ranks: Path,
    clusters: Clusters,
    asked: list[Path],
    first: int,
    last: int,
    bar: Bar,
    settings: DedupSettings,
    status: Path | None,
    threads: int,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write the edges of all vectors with those in clusters `first` to `last`: int64 ranks [e, 2].

    `ranks` is what `keep.rank_contents` left, `asked` what `ask` left of all ranges. `status` is what
    earlier passes left (see `groups.py`): images that are covered neither ask nor answer. (A
    representative then has no better neighbour, so it is the worse end of no edge.) Returns, beside how
    many edges there are, how many pairs were `compared`.
    """
    use_threads(threads)
    expect_search(clusters.images)
    loaded, rank = clusters.load(), map_array(ranks / RANK)
    state = map_array(status / "status.npy") if status else None
    edges, compared = EdgeBuffer(settings.groups, settings.edges_per_image), 0
    for queries, visits in questions(clusters, asked, first, last, state):
        for visited, rows in visits:
            base = thinned(loaded.of(visited), state)
            compared += len(rows) * len(base)
            for row, found in _answers(queries, rows, base, bar, state):
                a, b = rank[queries.numbers[row]], rank[base.numbers[found]]
                edges.add(np.maximum(a, b), np.minimum(a, b))
    return {**_save(edges, out), "compared": compared}


def search_pool(
    ranks: Path,
    clusters: Clusters,
    first: int,
    last: int,
    bar: Bar,
    settings: DedupSettings,
    status: Path | None,
    threads: int,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write the edges of the vectors in clusters `first` to `last` with the most similar of the pool.

    As `search`, but for the bound on `neighbours`: one unit has to see all answers of a vector.
    """
    use_threads(threads)
    loaded, rank = clusters.load(), map_array(ranks / RANK)
    state = map_array(status / "status.npy") if status else None
    expect_products(clusters.images * POOL_COMPARED)
    members = loaded.side_by_side(first, last)
    own = np.repeat(np.arange(first, last), np.diff(loaded.offsets(first, last)))
    asking = alive(members, state)
    queries, kept = joined([members[asking]]), MostSimilar(settings.neighbours)
    probes = probes_of(loaded, None, bar.threshold, settings)
    for visited, rows in own_visits(queries, own[asking], probes):
        base = thinned(loaded.of(visited), state)
        for row, found in _answers(queries, rows, base, bar, state):
            a, b = rank[queries.numbers[row]], rank[base.numbers[found]]
            kept.add(a, b, cosines(queries, row, base, found))
    a, b, _ = kept.result()
    edges = EdgeBuffer(settings.groups, settings.edges_per_image)
    edges.add(np.maximum(a, b), np.minimum(a, b))
    return _save(edges, out)


def _answers(
    queries: Searchable,
    rows: Rows,
    base: Searchable,
    bar: Bar,
    state: Int8[np.ndarray, " n"] | None,
) -> Iterator[tuple[Rows, Rows]]:
    """Yield what `copies` does, without those of the base that are covered."""
    for row, found in copies(queries, rows, base, bar):
        if state is None:
            yield row, found
        else:
            answers = state[base.numbers[found]] != COVERED
            yield row[answers], found[answers]


def _save(edges: EdgeBuffer, out: Path) -> dict[str, int]:
    found, truncated = edges.result()
    np.save(out / "edges.npy", found)
    np.save(out / "truncated.npy", truncated)
    return {"edges": len(found), "truncated": len(truncated)}


def probes_of(
    loaded: LoadedClusters, heaps: Path | None, threshold: float, settings: DedupSettings
) -> Probes:
    """Return the rule by which clusters are searched; `heaps` as `ask` has it."""
    in_pool, count = settings.search == "pool", len(loaded)
    compared = POOL_COMPARED if in_pool else count_compared(loaded.images)
    cap = count_probes(compared, count, loaded.images)
    if isinstance(settings.probes, int):
        cap = settings.probes
    heap = np.load(heaps / HEAPS) if heaps else np.arange(count)
    return Probes(loaded.centroids, loaded.axes, heap, None if in_pool else threshold, cap)


def count_probes(compared: int, clusters: int, images: int) -> int:
    """Return in how many clusters of a crawl one is searched, to be compared with so many, about."""
    return max(10, -(-compared * clusters // max(1, images)))


def count_compared(images: int) -> int:
    """Return with how many of so many images a vector is compared, about, where nobody says it."""
    return max(COMPARED, round(OF_A_MILLION * (images / 1_000_000) ** GROWTH))


def expect_search(images: int) -> None:
    """Import torch where the search of so many images pays for it: the units before it gain, too."""
    expect_products(images * count_compared(images))


def sanity(
    collection: Collection, bar: Bar, settings: DedupSettings, *, out: Path
) -> dict[str, Any]:
    """Stop with an explanation when an absurd share of sampled pairs would be copies."""
    rng = np.random.default_rng(settings.seed)
    usable = collection.usable
    sample = np.sort(rng.choice(usable, min(len(usable), 2_000), replace=False))
    vectors = Searchable(collection.vectors(sample), sample)
    found = copies(vectors, np.arange(len(vectors)), vectors, bar)
    pairs = sum(len(row) for row, _ in found)
    share = pairs / max(1, len(vectors) * (len(vectors) - 1))
    each = share * (len(usable) - 1)
    if share > settings.max_pair_share and each >= ABSURD_NEIGHBOURS:
        raise LvdError(
            f"dedup.threshold {bar.threshold:.4f} would call {share:.1%} of all pairs of images copies "
            f"(about {each:.0f} copies of every image; more than {settings.max_pair_share:.0%} is "
            "absurd): it does not fit this embedder. Run `lvd-curate calibrate`, set a higher "
            "dedup.threshold, or name a trained embedder; where the crawl is that full of copies, raise "
            "dedup.max_pair_share"
        )
    return {"pairs": int(pairs // 2), "share": share}
