"""Writes the catalogue of a dataset: what a `Collection` maps, and what facts alone decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from curate.catalogue.collection import (
    APART,
    ARRAYS,
    EXPORTED,
    KEY,
    KEYS,
    PARTS,
    RESOLVED,
    Collection,
    KeyWriter,
    Numbers,
    PartOutputs,
)
from curate.catalogue.digests import digests_of, first_copies
from curate.catalogue.exported import Exported, find_exported
from curate.catalogue.labels import CompiledLabels
from curate.catalogue.part_files import FACTS
from curate.filters.decisions import OPEN
from curate.filters.judge import judge
from curate.filters.lists import CompiledList
from curate.filters.quality import QualitySettings, active
from curate.filters.scores import FilterSettings, score_column
from shared.errors import LvdError
from shared.storage.files import write_json

VERSION = 6


@dataclass(frozen=True)
class Judged:
    """What images are judged by: by default nothing, as seeds and holdouts are taken as they are."""

    quality: QualitySettings | None = None
    filters: Sequence[FilterSettings] = ()
    lists: Sequence[CompiledList] = ()
    exported: Exported | None = None
    """Those that the result to add to holds, or that are labelled to be kept."""
    labels: CompiledLabels | None = None


def catalogue(parts: Sequence[PartOutputs], work: Path, by: Judged, *, out: Path) -> dict[str, int]:
    """Write what a `Collection` maps: parts are numbered in the order of `name + "/"`.

    Without a quality nothing but `corrupt` is decided. Two images of one key in different parts are an error that names both.
    """
    parts = sorted(parts, key=lambda part: part.name + "/")
    counts = [pq.read_metadata(work / part.facts / FACTS).num_rows for part in parts]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(starts[-1])
    decision = np.empty(total, np.int8)
    write_json(out / PARTS, [vars(part) for part in parts])
    collection = Collection(out)
    object.__setattr__(collection, "_work", work)
    _require_columns(collection, total, by.quality, by.lists)
    write_json(out / RESOLVED, _resolve(collection, by.quality))
    unscored = {entry.column for entry in by.filters if entry.column is not None}
    digest = np.zeros(total, "S32")
    with KeyWriter(out / KEYS) as keys:
        for index in range(len(parts)):
            own = slice(starts[index], starts[index + 1])
            facts = collection.facts_of_part(index)
            keys.write(facts["key"].cast(KEY))
            valid = facts["valid"].to_numpy()
            unscored -= {c for c in unscored if facts[score_column(c)].null_count < len(facts)}
            how = by.quality, by.filters, by.lists, collection.resolved
            judged = judge(facts, facts, valid, *how)
            decision[own] = judged[0]
            digest[own] = digests_of(facts)
    if total and unscored:
        raise LvdError(
            f"filters: no image of the crawl has a number in the column {min(unscored)!r}: "
            "name a column of its Parquet tables or JSON members, or drop the filter"
        )
    order = _key_order(parts, starts, collection)
    place = np.empty(total, np.int64)
    place[order] = np.arange(total)
    said = (
        (int(starts[part]), collection.facts_of_part(part, ["key", "sha256"]))
        for part in range(len(parts))
    )
    np.save(out / EXPORTED, find_exported(by.exported, said, decision))
    canonical = first_copies(digest, decision == OPEN, place)
    if (labels := by.labels) is not None and labels.counts["apart"]:
        said = (
            (int(starts[part]), collection.facts_of_part(part, ["sha256"]))
            for part in range(len(parts))
        )
        pairs = np.array(labels.find_apart(said), np.int64).reshape(-1, 2)
        np.save(out / APART, canonical[pairs[(canonical[pairs] >= 0).all(1)]])
    arrays: tuple[np.ndarray, ...] = (starts, decision, canonical, order, place)
    for name, array in zip(ARRAYS, arrays, strict=True):
        np.save(out / f"{name}.npy", array)
    usable = int((canonical == np.arange(total)).sum())
    return {"images": total, "open": int((decision == OPEN).sum()), "usable": usable}


def _require_columns(
    collection: Collection,
    total: int,
    quality: QualitySettings | None,
    lists: Sequence[CompiledList],
) -> None:
    """Raise LvdError where no image has a value in a column that a filter or a list looks at."""
    wanted = {f"quality.{each.setting}": each.may_lack for each in active(quality)}
    wanted |= {f"lists.{each.name}": each.column for each in lists if each.column == "url"}
    for setting, column in wanted.items() if total else ():
        if column and all(
            facts[column].null_count == len(facts)
            for part in range(len(collection.parts))
            for facts in [collection.facts_of_part(part, [column])]
        ):
            raise LvdError(
                f"{setting}: no image of the crawl has a {column}: drop the setting, or name a "
                "crawl with one in its tables or JSON members"
            )


def _resolve(collection: Collection, quality: QualitySettings | None) -> dict[str, Any]:
    """Return what filters of quality make of all images, by their settings.

    Holds the columns of one such filter at a time.
    """
    parts = range(len(collection.parts))
    resolved = {}
    for each in active(quality):
        if each.resolve and parts:
            tables = (collection.facts_of_part(part, each.columns) for part in parts)
            facts = pa.concat_tables([table.select(list(each.columns)) for table in tables])
            resolved[each.setting] = each.resolve(facts, getattr(quality, each.setting))
    return resolved


def _key_order(
    parts: Sequence[PartOutputs], starts: Int64[np.ndarray, " edges"], collection: Collection
) -> Numbers:
    """Return all numbers in the order of their keys.

    Parts that follow one another in key order are only counted. A folder's files are dealt to parts
    by hash, and a part's name may be a folder of another's: these are sorted by key.
    """
    orders = [np.empty(0, np.int64)]
    for first, last in _interleaving(parts):
        own = np.arange(starts[first], starts[last])
        if last - first > 1:
            tables = [collection.facts_of_part(part, []) for part in range(first, last)]
            keys = pa.chunked_array(
                [chunk.cast(KEY) for table in tables for chunk in table["key"].chunks], KEY
            )
            order = pc.sort_indices(keys).to_numpy()
            _refuse_repeated(keys.take(order), parts[first])
            own = own[order]
        orders.append(own)
    return np.concatenate(orders)


def _refuse_repeated(ordered: pa.ChunkedArray, part: PartOutputs) -> None:
    same = pc.equal(ordered.slice(1), ordered.slice(0, max(0, len(ordered) - 1)))
    if len(ordered) > 1 and pc.any(same).as_py():
        repeated = ordered[pc.index(same, True).as_py()].as_py()
        raise LvdError(
            f"two images have the key {repeated!r} (in {part.name!r} and a part below it): "
            "rename one of the files, or curate them as two crawls"
        )


def _interleaving(parts: Sequence[PartOutputs]) -> Iterator[tuple[int, int]]:
    """Yield ranges of parts, sorted by name + "/", whose keys may interleave.

    A folder's keys do not start with its part's name, so they may stand between any others.
    """
    first = 0
    folders = any(part.interleaves for part in parts)
    for at in range(1, len(parts) + 1):
        if at == len(parts) or not (folders or parts[at].name.startswith(parts[first].name + "/")):
            yield first, at
            first = at
