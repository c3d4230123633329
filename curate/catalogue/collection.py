"""An embedded dataset in key order: every image has a number, its row among the sorted keys.

Stage catalogue: a reduce over the facts of a dataset's parts (about 70 bytes an image, and the
keys where parts interleave). What follows speaks of images by number, and ties that are broken by
number are broken by key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.embedding.embed import FACTS, VECTORS
from curate.filters.judge import OPEN, FilterSettings, QualitySettings, judge, score_column
from shared.errors import LvdError
from shared.parts import Part
from shared.storage import read_json, write_json

VERSION = 1
PARTS = "parts.json"
KEYS = "keys.arrow"
KEY = pa.large_string()
BLOCK = 262_144
"""Images of one unit of the map stages behind embed, and of one file of the reports."""


@dataclass(frozen=True)
class Collection:
    """A catalogued dataset; all arrays are memory-mapped and in the order of the images' numbers.

    `part` int32 and `row` int32 say where an image's facts stand, `vector` int32 where its vector
    does (-1: none), `decision` int8 what its facts alone decide, `canonical` int64 the first image
    of the same bytes (-1 for decided ones), `rank` int64 its place from best to worst.
    """

    folder: Path

    @cached_property
    def parts(self) -> list[str]:
        """Names of the parts, in the order of `part`."""
        return [entry["name"] for entry in read_json(self.folder / PARTS)]

    @cached_property
    def _embedded(self) -> list[Path]:
        work = self.folder.parents[2]
        return [work / entry["folder"] for entry in read_json(self.folder / PARTS)]

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in ("part", "row", "vector", "decision", "canonical", "rank"):
            raise AttributeError(name)
        array = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        object.__setattr__(self, name, array)
        return array

    def __len__(self) -> int:
        return len(self.decision)

    def __getstate__(self) -> dict:
        return {"folder": self.folder}

    @cached_property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._vectors_of(0).shape[1]

    @cached_property
    def usable(self) -> np.ndarray:
        """Numbers of the images that nothing is decided about, one for each distinct content."""
        return np.flatnonzero(self.canonical[:] == np.arange(len(self)))

    def blocks(self) -> list[tuple[int, int]]:
        """Return the ranges of numbers that the map stages work on."""
        return [(at, min(at + BLOCK, len(self))) for at in range(0, len(self), BLOCK)]

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """Return the stored float16 vectors [n, d] of images that have one."""
        result = np.empty((len(numbers), self.dim), np.float16)
        parts, rows = self.part[numbers], self.vector[numbers]
        for part, where in _groups(parts):
            result[where] = self._vectors_of(part)[rows[where]]
        return result

    def facts(self, numbers: np.ndarray, columns: list[str] | None = None) -> pa.Table:
        """Return the facts of images, in the order of `numbers`, with their part's name."""
        tables, places = [], []
        parts, rows = self.part[numbers], self.row[numbers]
        for part, where in _groups(parts):
            table = self.facts_of_part(part, columns).take(rows[where])
            name = pa.array([self.parts[part]] * len(where), pa.string())
            tables.append(table.append_column("part", name))
            places.append(where)
        if not tables:
            schema = pq.read_schema(self._embedded[0] / FACTS)
            return schema.append(pa.field("part", pa.string())).empty_table()
        return pa.concat_tables(tables).take(np.argsort(np.concatenate(places)))

    def facts_of_part(self, part: int, columns: list[str] | None = None) -> pa.Table:
        """Return the facts of all images of a part, by key."""
        return pq.read_table(self._embedded[part] / FACTS, columns=columns, memory_map=True)

    def keys(self, numbers: np.ndarray) -> list[str]:
        """Return the keys of images, in the order of `numbers`."""
        numbers = np.asarray(numbers, np.int64)
        result = np.empty(len(numbers), object)
        for batch, where in _groups(numbers // BLOCK):
            column = self._keys.get_batch(batch).column(0)
            result[where] = column.take(pa.array(numbers[where] % BLOCK)).to_pylist()
        return result.tolist()

    def find(self, key: str) -> int | None:
        """Return the number of the image with this key, or None."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.keys([middle])[0].encode() < key.encode():
                low = middle + 1
            else:
                high = middle
        return low if low < len(self) and self.keys([low])[0] == key else None

    @cached_property
    def _keys(self) -> pa.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(str(self.folder / KEYS)))

    def _vectors_of(self, part: int) -> np.ndarray:
        return np.load(self._embedded[part] / VECTORS, mmap_mode="r")


def _groups(parts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each part with the places that name it."""
    order = np.argsort(parts, kind="stable")
    edges = np.flatnonzero(np.diff(parts[order])) + 1
    for where in np.split(order, edges):
        if len(where):
            yield int(parts[where[0]]), where


def catalogue(
    parts: list[tuple[Part, Path]],
    work: Path,
    quality: QualitySettings | None,
    filters: list[FilterSettings],
    *,
    out: Path,
) -> dict:
    """Number the images of embedded `parts` (with their units' folders in `work`) by key.

    With `quality` None nothing but `corrupt` is decided: seeds and holdouts are taken as they are.
    Two images of one key in different parts are an error that names both.
    """
    parts = sorted(parts, key=lambda entry: entry[0].name + "/")
    folders = [folder for _, folder in parts]
    counts = [pq.read_metadata(folder / FACTS).num_rows for folder in folders]
    numbers = _number([part for part, _ in parts], folders, counts, out / KEYS)
    total = sum(counts)
    arrays = {
        "part": np.empty(total, np.int32),
        "row": np.empty(total, np.int32),
        "vector": np.empty(total, np.int32),
        "decision": np.empty(total, np.int8),
    }
    digest = np.zeros(total, "V32")
    pixels = np.zeros(total, np.int64)
    size = np.zeros(total, np.int64)
    scored = dict.fromkeys([entry.column for entry in filters], False)
    for index, (folder, number) in enumerate(zip(folders, numbers, strict=True)):
        facts = pq.read_table(folder / FACTS)
        arrays["part"][number] = index
        arrays["row"][number] = np.arange(len(facts))
        arrays["vector"][number] = facts["vector"].to_numpy()
        arrays["decision"][number] = _decide(facts, quality, filters)
        sha256 = "".join(value or "0" * 64 for value in facts["sha256"].to_pylist())
        digest[number] = np.frombuffer(bytes.fromhex(sha256), "V32")
        side = [
            facts[name].fill_null(0).to_numpy().astype(np.int64) for name in ("width", "height")
        ]
        pixels[number] = side[0] * side[1]
        size[number] = facts["bytes"].to_numpy()
        for column in scored:
            scored[column] |= facts[score_column(column)].null_count < len(facts)
    for column, seen in scored.items():
        if total and not seen:
            raise LvdError(
                f"filters: no image of the crawl has a number in the column {column!r}: "
                "name a column of its Parquet tables or JSON members, or drop the filter"
            )
    arrays["canonical"] = _first_copies(digest, arrays["decision"] == OPEN)
    arrays["rank"] = np.empty(total, np.int64)
    arrays["rank"][np.lexsort((np.arange(total), -size, -pixels))] = np.arange(total)
    for name, array in arrays.items():
        np.save(out / f"{name}.npy", array)
    described = [
        {"name": part.name, "folder": str(folder.relative_to(work))} for part, folder in parts
    ]
    write_json(out / PARTS, described)
    usable = int((arrays["canonical"] == np.arange(total)).sum())
    return {"images": total, "open": int((arrays["decision"] == OPEN).sum()), "usable": usable}


def _decide(
    facts: pa.Table, quality: QualitySettings | None, filters: list[FilterSettings]
) -> np.ndarray:
    lenient = QualitySettings(min_side=1, max_aspect=1e9, min_contrast=0)
    return judge(facts, quality or lenient, filters)[0]


def _number(
    parts: list[Part], folders: list[Path], counts: list[int], keys_path: Path
) -> list[np.ndarray]:
    """Return the images' numbers of every part, rising within it, and write all keys in order.

    Parts that follow one another in key order are only counted. Folder datasets deal their files
    to parts by hash, and a part's name may be a folder of another's: these are sorted by key.
    """
    result: list[np.ndarray] = []
    base = 0
    with _KeyWriter(keys_path) as writer:
        for first, last in _interleaving(parts):
            size = sum(counts[first:last])
            keys = _keys_of(folders[first:last])
            order = pc.sort_indices(keys).to_numpy()
            ordered = keys.take(order)
            _refuse_repeated(ordered, parts[first])
            writer.write(ordered)
            number = np.empty(size, np.int64)
            number[order] = np.arange(base, base + size)
            result += np.split(number, np.cumsum(counts[first : last - 1]))
            base += size
    return result


def _keys_of(folders: list[Path]) -> pa.ChunkedArray:
    tables = [pq.read_table(folder / FACTS, columns=["key"])["key"] for folder in folders]
    chunks = [chunk.cast(KEY) for keys in tables for chunk in keys.chunks]
    return pa.chunked_array(chunks, KEY)


def _refuse_repeated(ordered: pa.ChunkedArray, part: Part) -> None:
    same = pc.equal(ordered.slice(1), ordered.slice(0, max(0, len(ordered) - 1)))
    if len(ordered) > 1 and pc.any(same).as_py():
        repeated = ordered[pc.index(same, True).as_py()].as_py()
        raise LvdError(
            f"two images have the key {repeated!r} (in {part.name!r} and a part below it): "
            "rename one of the files, or curate them as two crawls"
        )


class _KeyWriter:
    """Writes keys as an Arrow file of batches of `BLOCK`, so that any key is found by number."""

    def __init__(self, path: Path) -> None:
        self._schema = pa.schema([("key", KEY)])
        self._writer = pa.ipc.new_file(str(path), self._schema)
        self._pending = pa.chunked_array([], KEY)

    def __enter__(self) -> _KeyWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if len(self._pending):
            self._flush(self._pending)
        self._writer.close()

    def write(self, keys: pa.ChunkedArray) -> None:
        """Append keys."""
        self._pending = pa.chunked_array([*self._pending.chunks, *keys.chunks], KEY)
        while len(self._pending) >= BLOCK:
            self._flush(self._pending.slice(0, BLOCK))
            self._pending = self._pending.slice(BLOCK)

    def _flush(self, keys: pa.ChunkedArray) -> None:
        whole = pa.concat_arrays(keys.chunks)
        self._writer.write_batch(pa.record_batch([whole], schema=self._schema))


def _interleaving(parts: list[Part]) -> Iterator[tuple[int, int]]:
    """Yield ranges of parts, sorted by name + "/", whose keys may interleave.

    A folder's keys do not start with its part's name, so they may stand between any others.
    """
    first = 0
    folders = any(part.format == "folder" for part in parts)
    for at in range(1, len(parts) + 1):
        if at == len(parts) or not (folders or parts[at].name.startswith(parts[first].name + "/")):
            yield first, at
            first = at


def _first_copies(digest: np.ndarray, taking_part: np.ndarray) -> np.ndarray:
    """Return for each image the first image of the same content; -1 where it takes no part."""
    canonical = np.full(len(digest), -1, np.int64)
    numbers = np.flatnonzero(taking_part)
    if len(numbers):
        words = np.ascontiguousarray(digest[numbers]).view(np.uint64).reshape(-1, 4)
        order = np.lexsort((numbers, *words.T))
        ordered = words[order]
        new = np.ones(len(order), bool)
        new[1:] = (ordered[1:] != ordered[:-1]).any(1)
        starts = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        canonical[numbers[order]] = numbers[order[starts]]
    return canonical
