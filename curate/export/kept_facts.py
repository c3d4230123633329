"""Lays what is known of the kept images down in the order of the shards, so that a shard reads a range.

An exchange in two passes: `sort_facts` (map over blocks of numbers) and `gather_facts` (a unit for
some shards, which reads a slice of each of those). The order of the shards is random: without it
every shard would read the facts of nearly every part.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curate.export.spill import Source
from curate.retrieval.nearest_seeds import NearestSeeds

FILE = "facts.arrow"
_TEXT = pa.large_string()
KEPT = pa.schema(
    [
        ("position", pa.int64()),
        ("source", pa.int16()),
        ("number", pa.int64()),
        ("key", _TEXT),
        ("part", _TEXT),
        ("member", _TEXT),
        ("url", _TEXT),
        ("caption", _TEXT),
        ("sha256", _TEXT),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", _TEXT),
        ("bytes", pa.int64()),
        ("offset", pa.int64()),
        ("nearest_seed", _TEXT),
        ("seed_similarity", pa.float32()),
    ]
)
"""`position` is the place among all kept images, `source` and `number` say which image it is."""
_FROM_FACTS = KEPT.names[KEPT.names.index("key") : KEPT.names.index("nearest_seed")]


def sort_facts(
    source: Source, place: int, nearest: NearestSeeds | None, start: int, stop: int, *, out: Path
) -> dict[str, Any]:
    """Write what is known of the kept images numbered from `start` to `stop`, by position.

    `place` is that of the source; without `nearest` no seed image is said to be near.
    """
    position = np.load(source.position, mmap_mode="r")[start:stop]
    rows = np.flatnonzero(position >= source.first)
    rows = rows[np.argsort(position[rows])]
    numbers = rows + start
    facts = source.data.facts(numbers, _FROM_FACTS)
    values: dict[str, Any] = {name: facts[name].cast(KEPT.field(name).type) for name in _FROM_FACTS}
    values |= {
        "position": position[rows],
        "source": np.full(len(rows), place, np.int16),
        "number": numbers,
    }
    if nearest is None:
        missing = ("nearest_seed", "seed_similarity")
        values |= {name: pa.nulls(len(rows), KEPT.field(name).type) for name in missing}
    else:
        near = nearest.find(numbers)
        keys = nearest.keys(near.places[:, 0], near.images[:, 0])
        values["nearest_seed"] = keys.cast(_TEXT)
        values["seed_similarity"] = near.similarity[:, 0]
    _write(pa.table([values[name] for name in KEPT.names], schema=KEPT), out / FILE)
    return {"images": len(rows)}


def gather_facts(folders: Sequence[Path], first: int, last: int, *, out: Path) -> dict[str, Any]:
    """Write what is known of the images at the positions `first` to `last`, in their order.

    `folders` are the units of `sort_facts`.
    """
    some = [_slice(folder, first, last) for folder in folders]
    table = pa.concat_tables([KEPT.empty_table(), *some])
    _write(table.take(np.argsort(table["position"].to_numpy())), out / FILE)
    return {"images": len(table)}


def read_facts(folder: Path, first: int, last: int) -> list[dict[str, Any]]:
    """Return what a unit of `gather_facts` says of the positions `first` to `last`."""
    rows: list[dict[str, Any]] = _slice(folder, first, last).to_pylist()
    return rows


def _slice(folder: Path, first: int, last: int) -> pa.Table:
    table = pa.ipc.open_file(pa.memory_map(os.fspath(folder / FILE))).read_all()
    start, stop = np.searchsorted(table["position"].to_numpy(), [first, last]).tolist()
    return table.slice(start, stop - start)


def _write(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
