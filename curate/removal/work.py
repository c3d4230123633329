"""Takes what was computed of images out of a work folder: their vectors, wherever they stand, and
the small grey pictures that `dedup.hash=pca` takes.

A unit is whole or not there, so that one which holds such a vector or picture goes as a whole, and the next
run that needs it makes it again, of what the crawl then holds. Facts stay: key, URL, caption, size
and hashes of an image, by which reports speak of it. Nothing in a work folder holds the bytes of an
image, but the built-in sample, which is a crawl.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float16, Int64

from curate.catalogue.part_files import FACTS, VECTORS
from curate.catalogue.part_files import LENT as LENT_ROWS
from curate.embedding.request import LENT
from curate.filters import grey
from shared.storage.commits import committed, discard

ROWS = 65_536
"""Vectors that are looked at together."""


def units_with(work: Path, hashes: Iterable[str]) -> list[Path]:
    """Return the units of `work` that hold a vector or a small picture of images of these sha256.

    These are the vectors of parts, which come last, those of other parts that they are lent to; the small pictures of parts; the clusters that
    they stand in, of whatever run, and those of them that a search for copies laid aside, found by
    the vectors' own bytes; and, as nothing in these tells of which images they are, the vectors of
    edited copies of all calibrations, and all that a run which was cut off had parts lend to others.
    """
    rows = _rows_of(work, pa.array(sorted(set(hashes)), pa.string()))
    lent = sorted(work.glob(f"{LENT}*/*/*"))
    if not rows:
        return lent
    parts = [
        unit
        for content in sorted(rows)
        for unit in sorted((work / "vectors").glob(f"*/{content}"))
        if committed(unit) is not None
    ]
    vectors = _Vectors()
    for unit in parts:
        vectors.add(np.load(unit / VECTORS, mmap_mode="r")[rows[unit.name]])
    borrowers = [
        path.parent
        for path in sorted((work / "vectors").glob(f"*/*/{LENT_ROWS}"))
        if path.parent not in parts and vectors.stand_in(path.with_name(VECTORS))
    ]
    clusters = [
        unit
        for stage in sorted((work / "cluster").glob("*"))
        if any(map(vectors.stand_in, sorted(stage.glob(f"*/{VECTORS}"))))
        for unit in sorted(stage.glob("*"))
    ]
    searched = [
        path.parent
        for path in sorted((work / "dedup").glob(f"*/*/{VECTORS}"))
        if vectors.stand_in(path)
    ]
    edited = sorted((work / "calibrate").glob("*/edited-*"))
    pictures = [
        unit
        for content in sorted(rows)
        for unit in sorted((work / grey.LOOK.name).glob(f"*/{content}"))
    ]
    return [*clusters, *searched, *edited, *pictures, *lent, *borrowers, *parts]


def drop(units: Iterable[Path], scratch: Path) -> None:
    """Remove units, in their order: what tells of the others goes last."""
    for unit in units:
        discard(unit, scratch)


def _rows_of(work: Path, hashes: pa.Array) -> dict[str, Int64[np.ndarray, " _"]]:
    """Return by content of a part the rows of the images of these sha256."""
    rows = {}
    for unit in sorted((work / "facts").glob("*/*")):
        if unit.name not in rows and committed(unit) is not None:
            facts = pq.read_table(unit / FACTS, columns=["sha256"])
            found = np.flatnonzero(pc.is_in(facts["sha256"], hashes, skip_nulls=True).to_numpy())
            if len(found):
                rows[unit.name] = found
    return rows


class _Vectors:
    """Stored vectors, by their length, that are looked for among others."""

    def __init__(self) -> None:
        self._known: dict[int, list[pa.Array]] = defaultdict(list)

    def add(self, vectors: Float16[np.ndarray, "n d"]) -> None:
        """Look for these too, but for zeros: those are no vectors."""
        self._known[vectors.shape[1]].append(_as_bytes(vectors[(vectors != 0).any(1)]))

    def stand_in(self, path: Path) -> bool:
        """Tell whether one of them is a row of a file."""
        others = np.load(path, mmap_mode="r")
        known = self._known.get(others.shape[1])
        if not known:
            return False
        wanted = pa.concat_arrays(known)
        return any(pc.any(pc.is_in(_as_bytes(block), wanted)).as_py() for block in _blocks(others))


def _blocks(vectors: Float16[np.ndarray, "n d"]) -> Iterator[Float16[np.ndarray, "_ d"]]:
    return (vectors[at : at + ROWS] for at in range(0, len(vectors), ROWS))


def _as_bytes(vectors: Float16[np.ndarray, "n d"]) -> pa.Array:
    """Return the bytes of each vector."""
    buffer = pa.py_buffer(np.ascontiguousarray(vectors).tobytes())
    kind = pa.binary(vectors.shape[1] * vectors.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(vectors), [None, buffer])
