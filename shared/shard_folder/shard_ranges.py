"""Where the images of a shard lie in its tar: written beside it by stage one, checked by who reads it.

They are the columns `offset` and `bytes` of the Parquet file beside the tar, and in its metadata,
under `lvd.ranges`, the tar's size and a hash of both. An index that does not fit its tar by size,
time, hash or the headers that are looked at is none.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.datasets.tars import BLOCK, list_tar
from shared.keys import stem
from shared.storage.files import fingerprint
from shared.storage.remote import is_remote, open_binary, read_range

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
COLUMNS = ("offset", "bytes")
_MARK = b"lvd.ranges"
_HEADERS = 8
"""Of so many images, evenly spaced, the tar's header is looked at."""


class MisfitError(Exception):
    """An index that is not that of its shard; its text says why."""


@dataclass(frozen=True)
class ImageRange:
    """An image of a shard: its key there, and where its bytes are in the tar."""

    key: str
    offset: int
    size: int


def list_ranges(shard: Path, keys: Iterable[str]) -> list[tuple[int, int]]:
    """Return place and size of the images of a shard's samples, each the first member of its key."""
    with shard.open("rb") as file:
        entries = list_tar(file.fileno(), [])
    first = {stem(entry.name): (entry.offset, entry.size) for entry in reversed(entries)}
    return [first[key] for key in keys]


def with_ranges(table: pa.Table, ranges: Sequence[tuple[int, int]], nbytes: int) -> pa.Table:
    """Return the table of a shard's samples (`key`) with the place of each one's image in its tar.

    `ranges` are place and size of each image in the tar of `nbytes`. Those that the table has are
    replaced.
    """
    import pyarrow as pa

    table = table.drop_columns([name for name in COLUMNS if name in table.column_names])
    offsets = pa.array([offset for offset, _ in ranges], pa.int64())
    sizes = pa.array([size for _, size in ranges], pa.int32())
    for name, values in zip(COLUMNS, (offsets, sizes), strict=True):
        table = table.append_column(pa.field(name, values.type, nullable=False), values)
    mark = {"version": VERSION, "bytes": nbytes, "hash": _hash(table, nbytes)}
    return table.replace_schema_metadata(
        {**(table.schema.metadata or {}), _MARK: json.dumps(mark, sort_keys=True)}
    )


def read_ranges(table: str, shard: str, nbytes: int | None) -> list[ImageRange] | None:
    """Return the images of the shard at `shard` from the Parquet file at `table`, both paths or URLs.

    `nbytes` is the tar's size; None where the storage does not tell, which costs a look at its end.
    None where the file holds no ranges. Raises MisfitError where they are those of another tar, or
    damaged, and the storage's own error where that fails.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from shared.storage.failures import raise_if_storage

    try:
        with open_binary(table) as source, pq.ParquetFile(source) as file:
            mark = (file.schema_arrow.metadata or {}).get(_MARK)
            if mark is None:
                return None
            about = json.loads(mark)
            rows = file.read(["key", *COLUMNS])
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        raise_if_storage(error)
        raise MisfitError(f"it cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(about, dict) or about.get("version") != VERSION:
        raise MisfitError("it is of another version")
    if nbytes is None:
        with open_binary(shard) as tar:
            nbytes = tar.seek(0, 2)
    if about.get("bytes") != nbytes:
        raise MisfitError(f"it is of a tar of {about.get('bytes')} bytes, and this has {nbytes}")
    if about.get("hash") != _hash(rows, nbytes):
        raise MisfitError("its rows are not those that were written (hash)")
    if not is_remote(shard) and Path(shard).stat().st_mtime_ns > Path(table).stat().st_mtime_ns:
        raise MisfitError("the tar is newer")
    images = [ImageRange(*row) for row in zip(*rows.to_pydict().values(), strict=True)]
    _check_headers(images, shard, nbytes)
    return images


def _check_headers(images: list[ImageRange], shard: str, nbytes: int) -> None:
    """Raise MisfitError where the tar says otherwise of one of some images, first and last included."""
    last, steps = max(len(images) - 1, 0), _HEADERS - 1
    looked_at = dict.fromkeys(round(last * step / steps) for step in range(_HEADERS))
    for image in (images[number] for number in looked_at if images):
        if image.offset < BLOCK or image.size < 0 or image.offset + image.size > nbytes:
            raise MisfitError(f"{image.key} would lie outside of the tar")
        try:
            header = read_range(shard, image.offset - BLOCK, BLOCK)
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            info = None
        if info is None or (stem(info.name), info.size) != (image.key, image.size):
            raise MisfitError(f"{image.key} does not lie where it says")


def _hash(table: pa.Table, nbytes: int) -> str:
    columns: list[list[Any]] = [table[name].to_pylist() for name in ("key", *COLUMNS)]
    return fingerprint([VERSION, nbytes, *columns], size=16)
