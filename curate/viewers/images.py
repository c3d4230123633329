"""The images of a finished run as files, each with what became of it: what other tools show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from curate.export.encode import EXTENSIONS
from curate.filters.decisions import DECISIONS
from curate.report.tables import open_tables
from curate.report.thumbnails import ReadImage, read_or_none
from curate.search.stored import StoredCrawl, reading

FIELDS = {
    "key": pa.string(),
    "decision": pa.string(),
    "reason": pa.string(),
    "seed_similarity": pa.float32(),
    "nearest_seed": pa.string(),
    "group": pa.int64(),
    "duplicate_of": pa.string(),
    "duplicate_similarity": pa.float32(),
    "cluster": pa.int32(),
    "width": pa.int32(),
    "height": pa.int32(),
    "format": pa.string(),
    "url": pa.string(),
    "output_shard": pa.string(),
    "output_key": pa.string(),
}
"""What is told of an image, as `images.parquet` has it."""
SHOWN = tuple(name for name in DECISIONS if name not in ("corrupt", "unsafe"))
"""Decisions whose images have pictures that may be shown."""
BLOCK = 1_000
"""Images taken together."""
Row = dict[str, Any]
"""`FIELDS` of an image, and `path`, that of its file in the folder."""


def choose(out: Path, decisions: Sequence[str], limit: int) -> tuple[int, Iterator[list[Row]]]:
    """Return how many images have one of `decisions`, and `limit` of them, drawn at random.

    These come as lists of up to `BLOCK` rows without `path`, in the order of their keys. The same result
    gives the same images, and those of a lower limit are among those of a higher one.
    """
    tables = open_tables(out)
    of_them = "FROM images WHERE decision IN (SELECT unnest($1))"
    [[total]] = tables.execute(f"SELECT count(*) {of_them}", [list(decisions)]).fetchall()
    names = ", ".join(f'"{name}"' for name in FIELDS)
    # md5 gives a random order that is the same in every version of DuckDB.
    answer = tables.sql(
        f"SELECT {names} {of_them} QUALIFY row_number() OVER (ORDER BY md5(key), key) <= $2 ORDER BY key",
        params=[list(decisions), limit],
    ).to_arrow_reader(BLOCK)
    return total, (batch.cast(pa.schema(FIELDS.items())).to_pylist() for batch in answer)


def written_images(
    blocks: Iterable[list[Row]], folder: Path, read: ReadImage
) -> Iterator[list[Row]]:
    """Write the images of rows below `folder`, and yield the rows with their `path`, block by block.

    A file is called by the image's decision and its number among those that are written. Images that are
    gone, or that are other ones by now, are left out. Raises the storage's own error where that fails.
    """
    number = 0
    for block in blocks:
        written = []
        for row in block:
            if (data := read_or_none(read, row["key"])) is None:
                continue
            name = f"{number:09d}.{EXTENSIONS.get(row['format'], row['format'])}"
            path = Path("data", row["decision"], name)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
            written.append(row | {"path": str(path)})
            number += 1
        yield written


def vectors_of(stored: StoredCrawl, rows: Sequence[Row]) -> Float32[np.ndarray, "n d"]:
    """Return the stored vectors of rows with length 1; zeros where an image has none."""
    with reading(stored):
        numbers = np.array([stored.collection.find(row["key"]) for row in rows], np.int64)
        vectors = stored.collection.vectors(numbers).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)
