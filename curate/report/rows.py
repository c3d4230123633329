"""Stage report, the tables: every image's row, its nearest seeds, its group.

A group is called by the row of its representative in `images.parquet`.

A map over blocks of the images in the order of their keys, so that the files of the blocks are
sorted and follow one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int32, Shaped
from pydantic import BaseModel, ConfigDict, Field

from curate.catalogue.collection import BLOCK, Collection
from curate.filters.decisions import CODE, DECISIONS
from curate.filters.judge import judge
from curate.filters.lists import CompiledList
from curate.filters.looks import LOOKS
from curate.filters.quality import QualitySettings
from curate.filters.scores import FilterSettings
from curate.neighbours.search import cosine, unit
from curate.retrieval.nearest_seeds import found
from shared.shards import output_key, shard_name

VERSION = 5

LOOKED = [field for look in LOOKS.values() for field in look.columns]
"""What looks take of pictures; null where a run does not ask for it."""
IMAGES = pa.schema(
    [
        ("key", pa.string()),
        ("part", pa.string()),
        ("member", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("bytes", pa.int64()),
        ("decision", pa.string()),
        ("reason", pa.string()),
        ("cluster", pa.int32()),
        ("group", pa.int64()),
        ("duplicate_of", pa.string()),
        ("duplicate_similarity", pa.float32()),
        ("nearest_seed", pa.string()),
        ("seed_similarity", pa.float32()),
        ("output_shard", pa.string()),
        ("output_key", pa.string()),
        *LOOKED,
    ]
)
FROM_FACTS = IMAGES.names[: IMAGES.names.index("decision")]
BEHIND_JUDGEMENT = IMAGES.names[
    IMAGES.names.index("cluster") : IMAGES.names.index("output_key") + 1
]
"""What is null of an image that is decided about before any other is looked at."""
RETRIEVAL = pa.schema(
    [
        ("key", pa.string()),
        ("rank", pa.int16()),
        ("seed_key", pa.string()),
        ("similarity", pa.float32()),
        ("strategy", pa.string()),
    ]
)
DUPLICATES = pa.schema(
    [
        ("group", pa.int64()),
        ("key", pa.string()),
        ("representative", pa.bool_()),
        ("similarity", pa.float32()),
        ("method", pa.string()),
    ]
)
TABLES = {"images": IMAGES, "retrieval": RETRIEVAL, "duplicates": DUPLICATES}


class ReportSettings(BaseModel):
    """What the reports hold."""

    model_config = ConfigDict(extra="forbid")

    top_k: int = Field(5, ge=1)
    """Nearest seed images listed for an image."""
    pictures: bool = True
    """Plots and contact sheets beside the tables."""


@dataclass(frozen=True)
class Decided:
    """Everything that the report's units read: where the stages left their arrays."""

    crawl: Collection
    seed: Collection
    holdouts: tuple[tuple[str, Collection], ...]
    assigned: tuple[Path, ...]
    groups: Path
    held: tuple[Path, ...]
    retrieved: tuple[Path, ...]
    selected: Path
    quality: QualitySettings
    filters: tuple[FilterSettings, ...]
    lists: tuple[CompiledList, ...]
    dedup_threshold: float
    max_images: int | None
    strategy: str
    misses: tuple[str, ...]
    """What the strategy says of irrelevant images, by its codes from 1 on."""
    shard_size: int


def tables(decided: Decided, start: int, stop: int, *, out: Path) -> dict:
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
        self.keys = self.facts["key"].to_pylist()

        def of(path: Path) -> Shaped[np.ndarray, " n"]:
            return np.load(path, mmap_mode="r")[self.numbers]

        self.decision = of(decided.selected / "decision.npy")
        self.position = of(decided.selected / "position.npy")
        self.missed = of(decided.selected / "missed.npy")
        self.representative = of(decided.groups / "representative.npy")
        self.grouped = of(decided.groups / "grouped.npy")
        self.cluster = self._of_blocks(decided.assigned, "cluster.npy")
        self.canonical = crawl.canonical[self.numbers]
        chosen = np.where(self.grouped, self.representative, 0)
        self.representative_key = crawl.keys(chosen)
        self.group = crawl.place[chosen]
        self.similarity = self._similarity_in_group()
        listed = np.isin(self.decision, [CODE[x] for x in ("irrelevant", "over_budget", "kept")])
        seen, self.seed_similarity, self.seeds = found(list(decided.retrieved), self.numbers)
        self.listed = listed & seen & (self.seeds.shape[1] > 0)
        self.exact = self.canonical == np.where(self.grouped, crawl.canonical[chosen], -2)
        self.held = self._held()

    def _of_blocks(self, folders: tuple[Path, ...], name: str) -> Int32[np.ndarray, " n"]:
        """Return by image what the units of blocks of numbers hold in their files `name`."""
        blocks = self.numbers // BLOCK
        result = np.empty(len(self.numbers), np.int32)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            result[here] = np.load(folders[block] / name)[self.numbers[here] - block * BLOCK]
        return result

    def _similarity_in_group(self) -> Float32[np.ndarray, " n"]:
        crawl = self.decided.crawl
        result = np.full(len(self.numbers), np.nan, np.float32)
        members = np.flatnonzero(self.grouped)
        for at in range(0, len(members), 8_192):
            some = members[at : at + 8_192]
            own = unit(crawl.vectors(self.canonical[some]))
            other = unit(crawl.vectors(self.representative[some]))
            same = self.canonical[some] == self.representative[some]
            result[some] = np.where(same, 1, cosine(own, other))
        return result

    def _held(self) -> dict[int, str]:
        said = {}
        for block in np.unique([self.numbers // BLOCK, self.canonical // BLOCK]).tolist():
            if block < 0 or not self.decided.held:
                continue
            folder = self.decided.held[block]
            hits, similarity = np.load(folder / "hits.npy"), np.load(folder / "similarity.npy")
            for (number, place, row), cosine_ in zip(hits.tolist(), similarity, strict=True):
                name, holdout = self.decided.holdouts[place]
                key = holdout.keys(np.array([row]))[0]
                said[number] = f"cosine {cosine_:.4f} with {key} of holdout {name}"
        return said

    def tables(self) -> dict[str, pa.Table]:
        return {
            "images": self._images(),
            "retrieval": self._retrieval(),
            "duplicates": self._duplicates(),
        }

    def _images(self) -> pa.Table:
        kept = self.decision == CODE["kept"]
        duplicate = self.decision == CODE["duplicate"]
        size = self.decided.shard_size
        shards = [shard_name(p // size) if p >= 0 else None for p in self.position.tolist()]
        outputs = [
            output_key(shard, p % size) if shard else None
            for shard, p in zip(shards, self.position.tolist(), strict=True)
        ]
        assert np.array_equal(kept, self.position >= 0)
        values = {
            **{name: self.facts[name] for name in FROM_FACTS},
            "decision": pa.array([DECISIONS[code] for code in self.decision], pa.string()),
            "reason": pa.array(self._reasons(), pa.string()),
            "cluster": pa.array(self.cluster, pa.int32(), mask=self.cluster < 0),
            "group": pa.array(self.group, pa.int64(), mask=~self.grouped),
            "duplicate_of": _masked(self.representative_key, duplicate, pa.string()),
            "duplicate_similarity": pa.array(self.similarity, pa.float32(), mask=~duplicate),
            "nearest_seed": _masked(self._nearest_seed(), self.listed, pa.string()),
            "seed_similarity": pa.array(self._first_similarity(), pa.float32(), mask=~self.listed),
            "output_shard": pa.array(shards, pa.string()),
            "output_key": pa.array(outputs, pa.string()),
            **{field.name: self._look(field) for field in LOOKED},
        }
        return pa.table([values[name] for name in IMAGES.names], schema=IMAGES)

    def _look(self, field: pa.Field) -> pa.Array | pa.ChunkedArray:
        if field.name in self.facts.column_names:
            return self.facts[field.name]
        return pa.nulls(len(self.facts), field.type)

    def _first_similarity(self) -> Float32[np.ndarray, " n"]:
        none = np.full(len(self.numbers), np.nan, np.float32)
        return self.seed_similarity[:, 0] if self.seeds.shape[1] else none

    def _nearest_seed(self) -> list[str]:
        if not self.seeds.shape[1]:
            return [""] * len(self.numbers)
        return self.decided.seed.keys(np.where(self.listed, self.seeds[:, 0], 0))

    def _reasons(self) -> list[str]:
        decided, valid = self.decided, self.facts["valid"].to_numpy()
        _, result = judge(
            *(self.facts, self.facts, valid, decided.quality, decided.filters, decided.lists),
            decided.crawl.resolved,
        )
        nearest, similarity = self._nearest_seed(), self._first_similarity()
        for row, code in enumerate(self.decision):
            name = DECISIONS[code]
            if name == "holdout":
                own, same = int(self.numbers[row]), int(self.canonical[row])
                of = self.representative_key[row]
                alone = f"in the group of {of}, which a holdout image hits"
                result[row] = self.held.get(own) or self.held.get(same) or alone
            elif name == "duplicate" and self.exact[row]:
                result[row] = f"the same bytes as {self.representative_key[row]}"
            elif name == "duplicate":
                said = f"cosine {self.similarity[row]:.4f} with {self.representative_key[row]}"
                short = self.similarity[row] < np.float32(decided.dedup_threshold)
                result[row] = said + (", through others" if short else "")
            elif name == "irrelevant":
                said = f"cosine {similarity[row]:.4f} with its nearest seed {nearest[row]}"
                result[row] = said + decided.misses[self.missed[row] - 1]
            elif name == "over_budget":
                best = f"not among the {decided.max_images} most similar"
                result[row] = f"cosine {similarity[row]:.4f} with its nearest seed is {best}"
        return result

    def _retrieval(self) -> pa.Table:
        rows, k = np.flatnonzero(self.listed), self.seeds.shape[1]
        seeds = self.seeds[rows].reshape(-1)
        keys = [self.keys[row] for row in rows for _ in range(k)]
        return pa.table(
            [
                pa.array(keys, pa.string()),
                pa.array(np.tile(np.arange(k), len(rows)), pa.int16()),
                pa.array(self.decided.seed.keys(seeds), pa.string()),
                pa.array(self.seed_similarity[rows].reshape(-1), pa.float32()),
                pa.array([self.decided.strategy] * len(keys), pa.string()),
            ],
            schema=RETRIEVAL,
        )

    def _duplicates(self) -> pa.Table:
        rows = np.flatnonzero(self.grouped)
        own = self.representative[rows] == self.numbers[rows]
        methods = np.where(self.exact[rows], "exact", "near")
        return pa.table(
            [
                pa.array(self.group[rows], pa.int64()),
                pa.array([self.keys[row] for row in rows], pa.string()),
                pa.array(own, pa.bool_()),
                pa.array(self.similarity[rows], pa.float32()),
                pa.array(methods.tolist(), pa.string()),
            ],
            schema=DUPLICATES,
        )


def _masked(values: list[Any], keep: Bool[np.ndarray, " n"], kind: pa.DataType) -> pa.Array:
    return pa.array([value if yes else None for value, yes in zip(values, keep, strict=True)], kind)
