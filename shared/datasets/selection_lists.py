"""Reads a selection list: which bytes of which files the images of a dataset are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared.datasets.sidecars import Note
from shared.errors import LvdError
from shared.keys import numbered
from shared.storage.failures import raise_if_storage
from shared.storage.remote import open_binary

_NEEDED = ("key", "part", "offset", "size")
_OPTIONAL = ("sha256", "url", "caption")


@dataclass(frozen=True)
class ListedImage:
    """A row of a list: the image is `size` bytes of the file or URL `location` from `offset` on."""

    key: str
    """Unique in the file: where one repeats, the later ones take `#2`, `#3`."""
    location: str
    offset: int
    size: int
    sha256: str | None
    note: Note


def read_list(source: IO[bytes]) -> Iterator[ListedImage]:
    """Yield the rows of a file of a list.

    Raises ValueError for a file that is no list, and whatever pyarrow raises for a damaged one.
    """
    with pq.ParquetFile(source) as file:
        there = file.schema_arrow.names
        if missing := [name for name in _NEEDED if name not in there]:
            raise ValueError(f"it is no selection list: it has no column {missing[0]}")
        columns = [*_NEEDED, *(name for name in _OPTIONAL if name in there)]
        table = file.read(columns=columns)
    if empty := [name for name in _NEEDED if table[name].null_count]:
        raise ValueError(f"it has rows without {empty[0]}")
    keys = numbered(table["key"].to_pylist())
    rows = (row for batch in table.to_batches() for row in batch.to_pylist())
    for key, row in zip(keys, rows, strict=True):
        yield ListedImage(
            *(key, row["part"], row["offset"], row["size"], row.get("sha256")),
            Note(row.get("url"), row.get("caption")),
        )


def sum_sizes(location: str) -> int:
    """Return the bytes of the images that a file of a list names; 0 where it cannot be read.

    Raises the storage's own error where that fails, and LvdError where the file is no list.
    """
    with open_binary(location) as source:
        try:
            total = pc.sum(pq.read_table(source, columns=["size"])["size"]).as_py()
        except KeyError as error:
            raise LvdError(f"{location} is no selection list: it has no column size") from error
        except (pa.ArrowException, ValueError, OSError) as error:
            raise_if_storage(error)
            return 0  # damaged: a problem of this part when it is read
    return total or 0
