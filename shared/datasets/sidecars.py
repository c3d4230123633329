"""Reads what lies beside an image: JSON and text members, and img2dataset's Parquet table.

All of it is untrusted. What cannot be read says nothing; it never costs its image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from shared.keys import shown

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LARGEST_NOTE = 1 << 20
"""Bytes of the largest sidecar that is read."""

SAID = ("url", "caption", "text")
"""The columns, or keys, that a note is made of; `text` is a caption where there is no `caption`."""

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Note:
    """What is said about an image: its address, its caption and the asked-for columns."""

    url: str | None = None
    caption: str | None = None
    columns: dict[str, object] = field(default_factory=dict)

    def over(self, other: Note) -> Note:
        """Return this note, with `other` filling what it does not say."""
        columns = dict(other.columns)
        columns.update({name: v for name, v in self.columns.items() if v is not None})
        return Note(self.url or other.url, self.caption or other.caption, columns)


def note_from_json(data: bytes, columns: Sequence[str]) -> Note:
    """Return what a `.json` sidecar says."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return Note()
    return note_from_row(content, columns) if isinstance(content, dict) else Note()


def read_object(data: bytes) -> dict[str, Any]:
    """Return the object that a `.json` sidecar is; {} for what is none, or no JSON.

    NaN and the infinities, which JSON does not have and Python writes, are null.
    """
    try:
        content = json.loads(data, parse_constant=lambda name: None)
        json.dumps(content, allow_nan=False)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def note_from_text(data: bytes) -> Note:
    """Return the caption that a `.txt` sidecar is."""
    return Note(caption=data.decode("utf-8", "replace").strip() or None)


def note_from_row(row: dict[str, Any], columns: Sequence[str]) -> Note:
    """Return what a table row or a JSON object says; fields of other types say nothing."""
    said = {name: scalar(row.get(name)) for name in {*SAID, *columns}}
    url, caption, text = (_text(said[name]) for name in SAID)
    return Note(url, caption or text, {name: said[name] for name in columns})


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def scalar(value: object) -> object:
    """Return a number, a truth value or valid text; None for anything else."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else None
    if isinstance(value, (float, Decimal)):
        number = float(value)
        return None if math.isnan(number) else number
    return shown(value) if isinstance(value, str) else None


def read_table(source: Any, columns: Sequence[str]) -> dict[str, Note]:
    """Return the notes of img2dataset's Parquet by its `key`; of rows with one key the first.

    Raises whatever pyarrow raises for a file that is none.
    """
    import pyarrow.parquet as pq

    notes: dict[str, Note] = {}
    with pq.ParquetFile(source) as table:
        for rows in rows_of(table, ["key", *SAID, *columns]):
            for row in rows:
                if row.get("key") is not None:
                    notes.setdefault(str(row["key"]), note_from_row(row, columns))
    return notes


def rows_of(table: pq.ParquetFile, names: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the named columns of a Parquet file as rows; names that it does not have are left out."""
    wanted = [name for name in dict.fromkeys(names) if name in table.schema_arrow.names]
    for batch in table.iter_batches(_ROWS_AT_ONCE, columns=wanted, use_threads=False):
        lists = {name: values_of(batch.column(name)) for name in wanted}
        yield [{name: lists[name][row] for name in wanted} for row in range(batch.num_rows)]


def values_of(column: pa.Array) -> list[Any]:
    """Return a column as Python values; text that is not UTF-8 keeps its bytes as `\\xff`."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = column.cast(pa.large_binary()).to_pylist()
        return [t if t is None else t.decode("utf-8", "backslashreplace") for t in texts]
    return column.to_pylist()
