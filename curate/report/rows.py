"""Stage report, the tables: every image's row, its nearest seeds, its group.

A group is called by the row of its representative in `images.parquet`.

A map over blocks of the images in the order of their keys, so that the files of the blocks are
sorted and follow one another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int32, Shaped

from curate.catalogue.collection import Collection, Numbers
from curate.dedup.hashes import Hashed
from curate.dedup.looks import DIRECTLY, NOT, Looked
from curate.export.bounds import ShardBounds
from curate.filters.decisions import CODE, DECISIONS
from curate.filters.judge import judge
from curate.filters.lists import CompiledList
from curate.filters.quality import QualitySettings
from curate.filters.scores import FilterSettings
from curate.neighbours.search import cosine, unit
from curate.report.budgets import why_over_budget
from curate.report.hits import Hit, Sets, describe_chain, find_chains, find_hits, of_included
from curate.report.schemas import (
    DUPLICATES,
    FROM_FACTS,
    IMAGES,
    LOOKED,
    RETRIEVAL,
)
from curate.retrieval.answers import Answers
from curate.retrieval.nearest_seeds import NearestSeeds
from curate.selection.include import Included
from curate.selection.top_up import TopUp
from curate.written_cosine import rounded_down
from shared.storage.arrays import map_array

VERSION = 9
LENT = ", by a lent vector"
"""What a reason ends with where no vector of the image itself was compared."""
_SAID_BY_JUDGE = [CODE[name] for name in ("corrupt", "unsafe", "low_quality", "kept")]
"""Decisions whose reason needs no other image."""


@dataclass(frozen=True)
class Decided:
    """Everything that the report's units read: where the stages left their arrays."""

    crawl: Collection
    answers: Answers
    holdouts: tuple[tuple[str, Collection], ...]
    assigned: tuple[Path, ...]
    groups: Path
    grouping: str
    """How they were made: `greedy` or `components`."""
    shapes: tuple[Path, ...]
    dropped: Path | None
    """What `follow_copies` wrote."""
    included: Included
    selected: Path
    quality: QualitySettings
    filters: tuple[FilterSettings, ...]
    lists: tuple[CompiledList, ...]
    removed: tuple[CompiledList, ...]
    """Those of them that images of included seeds are judged by, too."""
    dedup_threshold: float
    max_images: int | None
    bounds: ShardBounds
    balanced: Path | None = None
    hashed: Hashed | None = None
    looked: Looked | None = None
    topped_up: TopUp | None = None

    @property
    def exported(self) -> Sets:
        """The datasets that images are exported of, with their names: the crawl and the included seeds."""
        seeds = self.included.seeds
        return (("crawl", self.crawl), *((seed.name, seed.collection) for seed in seeds))


def tables(decided: Decided, start: int, stop: int, *, out: Path) -> dict[str, Any]:
    """Write `images.parquet`, `retrieval.parquet` and `duplicates.parquet` of a block in key order."""
    rows = _Block(decided, start, stop)
    for name, table in rows.tables().items():
        pq.write_table(table, out / f"{name}.parquet", compression="zstd")
    return {"images": stop - start}


class _Block:
    """The arrays of one block, and the tables they make."""

    def __init__(self, decided: Decided, start: int, stop: int) -> None:
        crawl = decided.crawl
        self.decided = decided
        self.numbers = np.array(crawl.order[start:stop])
        self.facts = crawl.facts(self.numbers)
        self.keys = self.facts["key"].combine_chunks()
        self.lent = crawl.lent(self.numbers)

        def of(path: Path) -> Shaped[np.ndarray, " n"]:
            return map_array(path)[self.numbers]

        self.decision = of(decided.selected / "decision.npy")
        self.position = of(decided.selected / "position-0.npy")
        self.barred = of(decided.selected / "barred.npy")
        self.weight = of(decided.selected / "weight.npy")
        self.balance_cluster = np.full(len(self.numbers), -1, np.int32)
        if decided.balanced is not None:
            self.balance_cluster = of(decided.selected / "balance_cluster.npy")
        self.top_up_similarity = np.full(len(self.numbers), np.nan, np.float32)
        self.left = np.zeros(len(self.numbers), bool)
        if decided.topped_up is not None:
            self.top_up_similarity = of(decided.selected / "top_up_similarity.npy")
            self.left = of(decided.selected / "top_up_left.npy")
        self.missed = map_array(decided.selected / "missed.npy")[:, self.numbers]
        self.representative = of(decided.groups / "representative.npy")
        self.grouped = of(decided.groups / "grouped.npy")
        self.cluster = self._of_blocks(decided.assigned, "cluster.npy")
        self.canonical = crawl.canonical[self.numbers]
        chosen = np.where(self.grouped, self.representative, 0)
        self.representative_key = crawl.key_array(chosen)
        self.group = crawl.place[chosen]
        self.similarity = self._similarity_in_group()
        listed = np.isin(self.decision, [CODE[x] for x in ("irrelevant", "over_budget", "kept")])
        self.nearest = decided.answers.nearest.find(self.numbers)
        self.listed = listed & self.nearest.seen & (self.nearest.images.shape[1] > 0)
        self.exact = self.canonical == np.where(self.grouped, crawl.canonical[chosen], -2)
        self.hashed = self._has_the_hash_of(chosen)
        self.looked = np.full(len(self.numbers), NOT, np.int8)
        if decided.looked is not None:
            self.looked = of(decided.looked.of_images)
        self.chains = find_chains(decided.dropped, decided.holdouts, self.numbers)
        self.included = self._copies_of_seeds()

    def _of_blocks(self, folders: tuple[Path, ...], name: str) -> Int32[np.ndarray, " n"]:
        """Return by image what the units of blocks of numbers hold in their files `name`."""
        block_size = self.decided.crawl.block
        blocks = self.numbers // block_size
        result = np.empty(len(self.numbers), np.int32)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            own = self.numbers[here] - block * block_size
            result[here] = map_array(folders[block] / name)[own]
        return result

    def _similarity_in_group(self) -> Float32[np.ndarray, " n"]:
        crawl = self.decided.crawl
        result = np.full(len(self.numbers), np.nan, np.float32)
        members = np.flatnonzero(self.grouped)
        for at in range(0, len(members), 8_192):
            some = members[at : at + 8_192]
            numbers = self.canonical[some], crawl.canonical[self.representative[some]]
            own, other = (unit(crawl.vectors(each)) for each in numbers)
            result[some] = np.where(numbers[0] == numbers[1], 1, cosine(own, other))
        return result

    def _has_the_hash_of(self, others: Numbers) -> Bool[np.ndarray, " n"]:
        """Tell which images are, by their hash and not by their bytes, copies of these ones."""
        if self.decided.hashed is None:
            return np.zeros(len(self.numbers), bool)
        stands = np.load(self.decided.hashed.stands, mmap_mode="r")
        own = stands[self.numbers]
        same: Bool[np.ndarray, " n"] = (own >= 0) & (own == stands[others])
        return same & self.grouped & ~self.exact

    def _copies_of_seeds(self) -> dict[int, Hit]:
        """Return by row which image of an included seed one is a copy of that stands for itself."""
        folders, [_, *seeds] = self.decided.included.copies.folders, self.decided.exported
        hits = find_hits(folders, self.decided.crawl.block, tuple(seeds), self.numbers)
        return {
            row: hits[number]
            for row, number in enumerate(self.numbers.tolist())
            if number in hits
            and self.representative[row] == number
            and self.decision[row] == CODE["duplicate"]
        }

    def tables(self) -> dict[str, pa.Table]:
        return {
            "images": self._images(),
            "retrieval": self._retrieval(),
            "duplicates": self._duplicates(),
        }

    def _images(self) -> pa.Table:
        kept = self.decision == CODE["kept"]
        copy, alike = self.decision == CODE["duplicate"], self._duplicate_similarity()
        balance, top_up = self.balance_cluster, self.top_up_similarity
        shards, keys = self.decided.bounds.outputs(self.position)
        assert np.array_equal(kept, self.position >= 0)
        values = {
            **{name: self.facts[name] for name in FROM_FACTS},
            "decision": pa.array(DECISIONS, pa.string()).take(pa.array(self.decision)),
            "reason": pa.array(self._reasons(), pa.string()),
            "cluster": pa.array(self.cluster, pa.int32(), mask=self.cluster < 0),
            "group": pa.array(self.group, pa.int64(), mask=~self.grouped),
            "duplicate_of": pc.if_else(copy, self._duplicate_of(), None),
            "duplicate_similarity": pa.array(alike, pa.float32(), mask=~copy),
            "nearest_seed": self._nearest_seed(),
            "seed_similarity": pa.array(self._first_similarity(), pa.float32(), mask=~self.listed),
            "lent": pa.array(self.lent, pa.bool_()),
            "seeds": self._seeds_that_want(),
            "weight": pa.array(self.weight, pa.int32(), mask=~kept),
            "balance_cluster": pa.array(balance, pa.int32(), mask=balance < 0),
            "top_up_similarity": pa.array(top_up, pa.float32(), mask=np.isnan(top_up)),
            "output_shard": shards,
            "output_key": keys,
            "scores": self._scores(),
            **{field.name: self._look(field) for field in LOOKED},
        }
        return pa.table([values[name] for name in IMAGES.names], schema=IMAGES)

    def _scores(self) -> pa.MapArray:
        """Return for each image what the filters looked at, by their names; null without filters."""
        kind = IMAGES.field("scores").type
        columns = {each.name: self.facts[each.score].to_pylist() for each in self.decided.filters}
        if not columns:
            return pa.nulls(len(self.facts), kind)
        rows = zip(*columns.values(), strict=True)
        return pa.array([list(zip(columns, row, strict=True)) for row in rows], kind)

    def _look(self, field: pa.Field) -> pa.Array | pa.ChunkedArray:
        if field.name in self.facts.column_names:
            return self.facts[field.name]
        return pa.nulls(len(self.facts), field.type)

    def _duplicate_of(self) -> pa.StringArray:
        if not self.included:
            return self.representative_key
        keys = self.representative_key.to_pylist()
        for row, hit in self.included.items():
            keys[row] = hit.key
        return pa.array(keys, pa.string())

    def _duplicate_similarity(self) -> Float32[np.ndarray, " n"]:
        result = self.similarity.copy()
        for row, hit in self.included.items():
            result[row] = hit.similarity
        return result

    def _first_similarity(self) -> Float32[np.ndarray, " n"]:
        none = np.full(len(self.numbers), np.nan, np.float32)
        return self.nearest.similarity[:, 0] if self.nearest.images.shape[1] else none

    def _nearest_seed(self) -> pa.StringArray:
        """Return the key of each image's nearest seed image, null where none is listed."""
        rows = np.flatnonzero(self.listed)
        found = self.decided.answers.nearest.keys(
            self.nearest.places[rows, 0], self.nearest.images[rows, 0]
        )
        place = np.cumsum(self.listed) - 1
        return found.take(pa.array(place, mask=~self.listed))

    def _seeds_that_want(self) -> pa.ListArray:
        """Return the names of the seeds that want each image, null where no nearest one is listed."""
        names = pa.array([each.name for each in self.decided.answers.wanted], pa.string())
        wants = ((self.missed == 0) & (self.barred < 0) & self.listed).T
        ends = np.cumsum(wants.sum(1), dtype=np.int32)
        return pa.ListArray.from_arrays(
            pa.array(np.insert(ends, 0, 0)),
            names.take(pa.array(np.nonzero(wants)[1])),
            mask=pa.array(~self.listed),
        )

    def _reasons(self) -> list[str]:
        decided, valid = self.decided, self.facts["valid"].to_numpy()
        _, result = judge(
            *(self.facts, self.facts, valid, decided.quality, decided.filters, decided.lists),
            decided.crawl.resolved,
        )
        irrelevant = self._why_irrelevant()
        over_budget = why_over_budget(
            *(decided.answers, self.missed, self._first_similarity(), self.balance_cluster),
            *(decided.max_images, decided.balanced, self.left, decided.topped_up),
        )
        represented = self.representative_key.to_pylist()
        later = np.flatnonzero(~np.isin(self.decision, _SAID_BY_JUDGE))
        for row, code in zip(later.tolist(), self.decision[later].tolist(), strict=True):
            name = DECISIONS[code]
            if name == "holdout":
                result[row] = self._why_held(row)
            elif row in self.included:
                hit = self.included[row]
                result[row] = f"{hit} {of_included(hit.name)}"
            elif name == "duplicate" and self.exact[row]:
                result[row] = f"the same bytes as {represented[row]}"
            elif name == "duplicate" and self.looked[row] != NOT:
                how = "by its pixels" if self.looked[row] == DIRECTLY else "through others"
                result[row] = f"the same picture as {represented[row]}, {how}"
            elif name == "duplicate" and self.hashed[row]:
                assert decided.hashed is not None
                title = decided.hashed.title
                result[row] = f"the same {title} as {represented[row]}"
            elif name == "duplicate":
                said = f"cosine {rounded_down(self.similarity[row])} with {represented[row]}"
                short = self.similarity[row] < np.float32(decided.dedup_threshold)
                result[row] = said + (", through others" if short else "")
            elif name == "irrelevant":
                result[row] = irrelevant(row)
            elif name == "over_budget":
                result[row] = over_budget(row)
            if self.lent[row]:
                result[row] += LENT
        return result

    def _why_held(self, row: int) -> str:
        """Say which holdout image an image is a copy of, or which copies lead to one that is."""
        number, decided = int(self.numbers[row]), self.decided
        chain, by = self.chains[number], ""
        if chain.similarity < np.float32(decided.dedup_threshold):
            by = "the same picture as {}, by its pixels" if decided.looked else ""
            if decided.hashed is not None:
                stands = np.load(decided.hashed.stands, mmap_mode="r")
                if 0 <= stands[number] == stands[chain.following]:
                    by = f"the same {decided.hashed.title} as {{}}"
        return describe_chain(chain, number, decided.exported, by)

    def _why_irrelevant(self) -> Callable[[int], str]:
        """Return what says why no seed wants an image, or which negative seed bars it."""
        wanted = self.decided.answers.wanted
        barred, nearest = self._barred(), self._nearest_seed().to_pylist()
        similarity = self._first_similarity().tolist()
        rows = np.flatnonzero(self.listed)
        nearest_of = np.zeros(len(self.numbers), np.int64)
        nearest_of[rows] = self.nearest.places[rows, 0]
        places, missed = nearest_of.tolist(), np.zeros(len(self.numbers), np.int8)
        missed[rows] = self.missed[nearest_of[rows], rows]

        def say(row: int) -> str:
            if row in barred:
                return barred[row]
            place = places[row]
            miss = wanted[place].chosen.misses[missed[row] - 1]
            said = f"cosine {rounded_down(similarity[row])} with its nearest seed {nearest[row]}"
            if len(wanted) == 1:
                return said + miss
            return f"{said} of {wanted[place].name}{miss}; no other seed retrieves it"

        return say

    def _barred(self) -> dict[int, str]:
        """Return by row what says that a negative seed bars an image."""
        said = {}
        for place, answer in enumerate(self.decided.answers.barred):
            rows = np.flatnonzero(self.barred == place)
            near = NearestSeeds((answer.retrieved,), 1)
            found = near.find(self.numbers[rows])
            keys = near.keys(found.places[:, 0], found.images[:, 0]).to_pylist()
            for row, key, cosine_ in zip(rows.tolist(), keys, found.similarity[:, 0], strict=True):
                said[row] = (
                    f"cosine {rounded_down(cosine_)} with {key} of negative seed {answer.name} reaches "
                    f"{rounded_down(answer.threshold.value)}"
                )
        return said

    def _retrieval(self) -> pa.Table:
        rows, k = np.flatnonzero(self.listed), self.nearest.images.shape[1]
        places, images = (
            found[rows].reshape(-1) for found in (self.nearest.places, self.nearest.images)
        )
        wanted, of = self.decided.answers.wanted, pa.array(places)
        return pa.table(
            [
                self.keys.take(pa.array(np.repeat(rows, k))),
                pa.array(np.tile(np.arange(k), len(rows)), pa.int16()),
                self.decided.answers.nearest.keys(places, images),
                pa.array(self.nearest.similarity[rows].reshape(-1), pa.float32()),
                pa.array([each.settings.strategy for each in wanted], pa.string()).take(of),
                pa.array([each.name for each in wanted], pa.string()).take(of),
            ],
            schema=RETRIEVAL,
        )

    def _duplicates(self) -> pa.Table:
        rows = np.flatnonzero(self.grouped)
        own = self.representative[rows] == self.numbers[rows]
        by_vectors = np.where(self.exact[rows], "exact", "near")
        by_hash = self.decided.hashed.name if self.decided.hashed else ""
        by_vectors = np.where(self.looked[rows] != NOT, "looked", by_vectors)
        methods = np.where(self.hashed[rows], by_hash, by_vectors)
        return pa.table(
            [
                pa.array(self.group[rows], pa.int64()),
                self.keys.take(pa.array(rows)),
                pa.array(own, pa.bool_()),
                pa.array(self.similarity[rows], pa.float32()),
                pa.array(methods.tolist(), pa.string()),
            ],
            schema=DUPLICATES,
        )
