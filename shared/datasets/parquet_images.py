"""Finds the images in a Parquet file and copies their bytes, row by row, to a spool file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from shared.datasets.sidecars import SAID, Note, note_from_row, rows_of
from shared.errors import nearest

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROWS_AT_ONCE = 16  # pictures held in memory together
_KEY_COLUMNS = ("key", "__key__")
_USUAL_NAMES = ("image", "img", "jpg", "png", "webp", "image_bytes", "bytes", "content", "data")


@dataclass(frozen=True)
class ImageRow:
    """A row of a Parquet file: its key, what it says, and where in the spool its image lies."""

    key: str
    note: Note
    offset: int
    size: int
    problem: str
    beside: dict[str, bytes] = field(default_factory=dict)
    """What the asked-for columns hold, as files of these extensions would hold it."""


def image_column(schema: pa.Schema, wanted: str | None) -> str:
    """Return the column that holds images: bytes, or Hugging Face's struct of bytes and path.

    Raises ValueError, its text the reason, where there is no such column or a choice of several.
    """
    able = [column.name for column in schema if _holds_bytes(column.type)]
    lists = [column.name for column in schema if _holds_lists_of_bytes(column.type)]
    if wanted is not None and wanted in able:
        return wanted
    if wanted in lists or (wanted is None and lists and not able):
        name = wanted or lists[0]
        raise ValueError(
            f"column {name!r} holds a list of images a row, and one image a row is read: write it "
            f"""so, as with duckdb.sql("copy (select * exclude {name}, unnest({name}) as image """
            """from 'OLD.parquet') to 'NEW.parquet'")"""
        )
    if wanted is not None and wanted in schema.names:
        raise ValueError(
            f"column {wanted!r} is {schema.field(wanted).type}, not image bytes"
            + (f": set image_column to {' or '.join(able)}" if able else "")
        )
    set_column = "set the dataset's `image_column` in pipelines.yaml"
    if wanted is not None:
        raise ValueError(f"no column {wanted!r}{nearest(wanted, schema.names)}; {set_column}")
    if len(able) == 1:
        return able[0]
    usual = next((name for name in _USUAL_NAMES if name in able), None)
    if usual is not None:
        return usual
    if able:
        raise ValueError(f"images could be in {', '.join(able)}; {set_column}")
    raise ValueError(
        f"no column of image bytes among {', '.join(schema.names)}: one must be binary, or a struct "
        "of bytes and path as Hugging Face writes it"
    )


def spool_rows(
    source: Any,
    spool: IO[bytes],
    columns: Sequence[str],
    wanted: str | None,
    key_column: str | None,
    problems: list[str],
    beside: Sequence[str] = (),
) -> Iterator[ImageRow]:
    """Copy the images of a Parquet file to `spool` and yield a row for each, in the file's order.

    What is written to `spool` between two rows stays there. `beside` are the columns of a row's.

    Keys are the key column's values where they are all there and unique, else the row numbers.
    Raises ValueError for a file with no image column, or columns of different lengths, and whatever
    pyarrow raises for a damaged one.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as table:
        column = image_column(table.schema_arrow, wanted)
        keys = _keys(table, key_column, problems)
        names = [name for name in (*SAID, *columns, *beside) if name != column]
        rows = (row for some in rows_of(table, names) for row in some)
        for number, (image, row) in enumerate(zip(_images(table, column), rows, strict=True)):
            if keys is not None and number == len(keys):
                raise ValueError("its columns differ in length")
            offset = spool.tell()
            if image is not None:
                spool.write(image)
            yield ImageRow(
                key=keys[number] if keys is not None else str(number),
                note=note_from_row(row, columns),
                offset=offset,
                size=0 if image is None else len(image),
                problem="the row holds no image bytes" if image is None else "",
                beside={name: _as_file(row[name]) for name in beside if row.get(name) is not None},
            )


def _as_file(value: object) -> bytes:
    """Return what a file would hold in whose place a value stands: text as it is, or JSON."""
    if isinstance(value, bytes):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.encode("utf-8", "backslashreplace")


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _holds_lists_of_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in lists) and _holds_bytes(kind.value_type)


def _images(table: pq.ParquetFile, name: str) -> Iterator[bytes | None]:
    for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[name], use_threads=False):
        column = batch.column(name)
        for value in column:  # one at a time: a list of all would hold them twice
            content = value.as_py()
            yield content["bytes"] if isinstance(content, dict) else content


def _keys(table: pq.ParquetFile, wanted: str | None, problems: list[str]) -> list[str] | None:
    candidates = [wanted] if wanted else list(_KEY_COLUMNS)
    name = next((name for name in candidates if name in table.schema_arrow.names), None)
    if name is None:
        if wanted:
            problems.append(f"no key column {wanted!r}: the rows' numbers are their keys")
        return None
    values = [value for rows in rows_of(table, [name]) for value in (r[name] for r in rows)]
    keys = [str(value) for value in values if isinstance(value, (str, int))]
    if len(set(keys)) == len(values):
        return keys
    problems.append(f"key column {name!r} is not unique: the rows' numbers are their keys")
    return None
