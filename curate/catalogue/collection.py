"""An embedded dataset: its parts, the facts of each image, and what these alone decide.

An image is (part, row). Stages speak of images by number, the place of (part, row) when the parts
stand one behind the other: `starts[part] + row`. Numbers are of one run. Nothing that is computed
of a part knows them, so that a new part changes no facts and no vectors of another. Stage
catalogue is a reduce of about 170 bytes an image, and the keys where parts interleave.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float16, Int64, Integer

from curate.catalogue.digests import Digests, digests_of
from curate.catalogue.exported import Places
from curate.catalogue.part_files import COLUMNS, FACTS, LENT, SCORES, VALID, VECTORS
from shared.datasets.dataset import Part
from shared.storage.arrays import map_array
from shared.storage.files import read_json

PARTS = "parts.json"
RESOLVED = "resolved.json"
KEYS = "keys.arrow"
EXPORTED = "exported.npy"
APART = "apart.npy"
ARRAYS = ("starts", "decision", "canonical", "order", "place")
KEY = pa.large_string()
KEYS_TOGETHER = 65_536
"""Keys of one batch of the Arrow file that they are looked up in."""
LEAST_BLOCK = 4_096

Numbers = Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class PartOutputs:
    """Where the units of a part lie; travels to the workers. Paths are relative to the work folder."""

    name: str
    prefix: str
    """What stands before a name in its key."""
    facts: str
    scores: str | None
    vectors: str | None
    """None before anything is embedded."""
    interleaves: bool
    """Whether keys of other parts may stand between its own."""
    looks: Sequence[str] = ()
    """The files of what was taken of pictures, and of scores that were computed of vectors."""
    lent: bool = False
    """Whether vectors may be those of other images of a hash."""


@dataclass(frozen=True)
class Collection:
    """A catalogued dataset and its vectors by one embedder; all arrays are memory-mapped.

    `starts` int64 [parts + 1]: the number of each part's first image. By number: `decision` int8,
    what the facts alone decide; `canonical` int64, the image of the same bytes whose key is first
    (-1 for decided ones); `place` int64, its place in the order of the keys. `order` int64: all
    numbers in that order.
    """

    folder: Path

    @cached_property
    def parts(self) -> list[PartOutputs]:
        """The parts, in the order of their numbers."""
        return [PartOutputs(**entry) for entry in read_json(self.folder / PARTS)]

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """What some filters of quality made of all images, by their settings."""
        resolved: dict[str, Any] = read_json(self.folder / RESOLVED)
        return resolved

    def __getattr__(self, name: str) -> Integer[np.ndarray, " n"]:
        if name not in ARRAYS:
            raise AttributeError(name)
        array: np.ndarray = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        object.__setattr__(self, name, array)
        return array

    def __len__(self) -> int:
        return len(self.decision)

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}

    @cached_property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return int(self._vectors_of(0).shape[1])

    @cached_property
    def exported(self) -> Places:
        """Numbers of the images that the result to add to holds, and their places in its shards."""
        places: Places = np.load(self.folder / EXPORTED)
        return places

    @cached_property
    def apart(self) -> Int64[np.ndarray, "p 2"]:
        """Numbers of the images that are labelled not to be copies, in pairs, each first of its bytes."""
        path = self.folder / APART
        return np.load(path) if path.exists() else np.empty((0, 2), np.int64)

    @cached_property
    def standing(self) -> Numbers:
        """Numbers of the images that stand for themselves whatever is similar, one for each content."""
        exported = self.exported[:, 0]
        other = np.setdiff1d(self.apart, self.canonical[exported])
        return np.sort(np.concatenate([exported, other]))

    @cached_property
    def usable(self) -> Numbers:
        """Numbers of the images that nothing is decided about, one for each distinct content."""
        return np.flatnonzero(self.canonical[:] == np.arange(len(self)))

    @cached_property
    def open_by_key(self) -> Numbers:
        """Numbers of the images that nothing is decided about, in the order of their keys."""
        order: Numbers = self.order[:]
        taken: Numbers = order[self.canonical[order] >= 0]
        return taken

    @property
    def block(self) -> int:
        """Images of one unit of the map stages behind embed, and of one file of the reports."""
        return block_size(len(self))

    def blocks(self) -> list[tuple[int, int]]:
        """Return the ranges of numbers, or of places in `order`, that the map stages work on."""
        return [(at, min(at + self.block, len(self))) for at in range(0, len(self), self.block)]

    def part_of(self, numbers: Numbers) -> Numbers:
        """Return the part of each image."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def vectors(self, numbers: Numbers) -> Float16[np.ndarray, "n d"]:
        """Return the stored vectors of images; zeros where an image has none."""
        result = np.empty((len(numbers), self.dim), np.float16)
        for part, where, rows in self._rows(numbers):
            result[where] = self._vectors_of(part)[rows]
        return result

    def lent(self, numbers: Numbers) -> Bool[np.ndarray, " n"]:
        """Tell which images have the vector of another image of their hash."""
        result = np.zeros(len(numbers), bool)
        for part, where, rows in self._rows(numbers):
            vectors = self.parts[part].vectors
            if self.parts[part].lent and vectors is not None:
                without, valid = (np.load(self._work / vectors / x)[rows] for x in (LENT, VALID))
                result[where] = without & valid
        return result

    def facts(self, numbers: Numbers, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the facts of images, in their order, with `key`, `part`, `valid`, all scores and looks."""
        tables, places = [], []
        for part, where, rows in self._rows(numbers):
            tables.append(self.facts_of_part(part, columns, rows))
            places.append(where)
        if not tables:
            return self.facts_of_part(0, columns, np.empty(0, np.int64))
        return pa.concat_tables(tables).take(np.argsort(np.concatenate(places)))

    def facts_of_part(
        self, part: int, columns: Sequence[str] | None = None, rows: Numbers | None = None
    ) -> pa.Table:
        """Return the facts of all images of a part, by key, or of some `rows`, in their order.

        `columns` may name those of looks. What holds none of the rows is not read.
        """
        outputs, work = self.parts[part], self._work
        asked = None if columns is None else ["name", *(c for c in columns if c in COLUMNS.names)]
        table = read_rows(work / outputs.facts / FACTS, asked, rows)
        keys = pc.binary_join_element_wise(outputs.prefix, table["name"], "")
        table = table.drop_columns(["name"]).add_column(0, "key", keys)
        table = table.append_column("part", pa.array([outputs.name] * len(table), pa.string()))
        if columns is None:
            if outputs.vectors is None:
                valid = pc.equal(table["problem"], "").to_numpy()
            else:
                valid = np.load(work / outputs.vectors / VALID, mmap_mode="r")
                valid = valid if rows is None else valid[rows]
            table = table.append_column("valid", pa.array(valid))
            scores = [] if outputs.scores is None else [f"{outputs.scores}/{SCORES}"]
            for file in (*scores, *outputs.looks):
                more = read_rows(work / file, None, rows)
                for name in more.column_names:
                    table = table.append_column(name, more[name])
        elif beside := set(columns) - {*COLUMNS.names, *table.column_names}:
            for file in outputs.looks:
                for name in beside.intersection(pq.read_schema(work / file).names):
                    more = read_rows(work / file, [name], rows)
                    table = table.append_column(name, more[name])
        return table

    def digests(self) -> Digests:
        """Return the digests of all images."""
        found = np.zeros(len(self), "S32")
        for part in range(len(self.parts)):
            own = slice(self.starts[part], self.starts[part + 1])
            found[own] = digests_of(self.facts_of_part(part, ["sha256"]))
        return found

    def keys(self, numbers: Numbers) -> list[str]:
        """Return the keys of images, in the order of `numbers`."""
        keys: list[str] = self.key_array(numbers).to_pylist()
        return keys

    def key_array(self, numbers: Numbers) -> pa.StringArray:
        """Return the keys of images, in the order of `numbers`, in Arrow's memory."""
        numbers = np.asarray(numbers, np.int64)
        keys, places = [pa.array([], KEY)], [np.empty(0, np.int64)]
        for batch, where in _groups(numbers // KEYS_TOGETHER):
            column = self._keys.get_batch(batch).column(0)
            keys.append(column.take(pa.array(numbers[where] % KEYS_TOGETHER)))
            places.append(where)
        order = np.argsort(np.concatenate(places))
        return pa.concat_arrays(keys).take(pa.array(order)).cast(pa.string())

    def find(self, key: str) -> int | None:
        """Return the number of the image with this key, or None."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.keys(self.order[middle : middle + 1])[0].encode() < key.encode():
                low = middle + 1
            else:
                high = middle
        if low < len(self) and self.keys(self.order[low : low + 1])[0] == key:
            return int(self.order[low])
        return None

    @cached_property
    def _work(self) -> Path:
        return self.folder.parents[2]

    @cached_property
    def _keys(self) -> pa.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(os.fspath(self.folder / KEYS)))

    def _vectors_of(self, part: int) -> Float16[np.ndarray, "rows d"]:
        vectors = self.parts[part].vectors
        assert vectors is not None  # embedded by now
        return map_array(self._work / vectors / VECTORS)

    def _rows(self, numbers: Numbers) -> Iterator[tuple[int, Numbers, Numbers]]:
        """Yield each part with the places in `numbers` that name it, and its rows there."""
        numbers = np.asarray(numbers, np.int64)
        for part, where in _groups(self.part_of(numbers)):
            yield part, where, numbers[where] - self.starts[part]


@dataclass(frozen=True)
class Catalogued:
    """A dataset as one embedder sees it; `address` stands for its content."""

    name: str
    parts: list[Part]
    """In the order of the collection's."""
    collection: Collection
    address: str


class KeyWriter:
    """Writes keys as an Arrow file of batches of `KEYS_TOGETHER`, so that any key is found by number."""

    def __init__(self, path: Path) -> None:
        self._schema = pa.schema([("key", KEY)])
        self._writer = pa.ipc.new_file(str(path), self._schema)
        self._pending = pa.chunked_array([], KEY)

    def __enter__(self) -> KeyWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if len(self._pending):
            self._flush(self._pending)
        self._writer.close()

    def write(self, keys: pa.ChunkedArray) -> None:
        """Append keys."""
        self._pending = pa.chunked_array([*self._pending.chunks, *keys.chunks], KEY)
        while len(self._pending) >= KEYS_TOGETHER:
            self._flush(self._pending.slice(0, KEYS_TOGETHER))
            self._pending = self._pending.slice(KEYS_TOGETHER)

    def _flush(self, keys: pa.ChunkedArray) -> None:
        whole = pa.concat_arrays(keys.chunks)
        self._writer.write_batch(pa.record_batch([whole], schema=self._schema))


def read_rows(path: Path, columns: list[str] | None, rows: Numbers | None) -> pa.Table:
    """Return rows of a Parquet file in their order, all where none are given.

    Only the row groups that hold one of them are read.
    """
    if rows is None:
        return pq.read_table(path, columns=columns, memory_map=True)
    with pq.ParquetFile(path, memory_map=True) as file:
        sizes = [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        group = np.searchsorted(starts, rows, side="right") - 1
        read, place = np.unique(group, return_inverse=True)
        table = file.read_row_groups(read.tolist(), columns=columns)
        before = np.concatenate([[0], np.cumsum(np.diff(starts)[read])]).astype(np.int64)
        return table.take(pa.array(rows - starts[group] + before[place]))


def block_size(images: int) -> int:
    """Return how many of so many images a block holds: a power of two, of `LEAST_BLOCK` or more.

    That is about four times the root of their number, so there are a quarter of the root as many
    blocks. Where every unit of a stage reads of every unit of another, the files opened for an image
    stay as many however many images there are; a unit's memory grows with the root.
    """
    return max(LEAST_BLOCK, 1 << (16 * max(1, images) - 1).bit_length() // 2)


def _groups(values: Numbers) -> Iterator[tuple[int, Int64[np.ndarray, " _"]]]:
    """Yield each value with the places where it stands."""
    order = np.argsort(values, kind="stable")
    edges = np.flatnonzero(np.diff(values[order])) + 1
    for where in np.split(order, edges):
        if len(where):
            yield int(values[where[0]]), where
