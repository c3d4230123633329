"""Writes WebDataset shards in the img2dataset layout: what stage one hands to stage two.

A shard is `00000.tar` (members `000000000.jpg` and `000000000.json`, and so on), `00000.parquet` (a
row for each sample) and `00000_stats.json`, which is written last and so marks the shard as whole.
The JSON and the Parquet row of a sample hold the same fields, the row also where the image lies in
the tar (`shard_ranges.py`), and every field always has a value
of its own type: Hugging Face `datasets` takes the types from a shard's first samples, and
fails where a null stands in one of them and text in a later one. It also wants the same members in all
of these. What a sample has beside its image, and keys of its own in the JSON, follow these.
"""

from __future__ import annotations

import json
import math
import os
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from shared.shard_folder.shard_ranges import list_ranges, with_ranges
from shared.shard_folder.tar_writer import TarWriter

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_CAPACITY = 10_000
"""The most samples that the four digits of an output key can tell apart."""

FIELDS: dict[str, str | int | float] = {
    "key": "",
    "url": "",
    "caption": "",
    "status": "success",
    "error_message": "",
    "width": 0,
    "height": 0,
    "original_width": 0,
    "original_height": 0,
    "sha256": "",
    "source_key": "",
    "source_part": "",
    "source_member": "",
    "seed_similarity": -1.0,
    "nearest_seed": "",
    "edited_by": "",
}
"""Every field of a sample with what stands in for an unknown value; its type is the field's type."""

_GIVEN = FIELDS.keys() - {"key", "status", "error_message", "width", "height", "source_key"}
_IN_JSON = sorted(FIELDS)
_TOGETHER = 1 << 20
"""Bytes of a tar that are written at once: so it takes a third less time than file by file."""
_ROW_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Sample:
    """One kept image as it goes into a shard."""

    key: str
    """The image's stable key in the crawl; it becomes `source_key`."""
    data: bytes
    """The bytes to write, whose picture is as large as the row will say."""
    extension: str
    """Their extension without the dot."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Any of url, caption, original_width, original_height, sha256 (of the source bytes), source_part,
    source_member, seed_similarity, nearest_seed and edited_by (what changed the picture); None and
    NaN count as unknown."""
    members: Mapping[str, bytes] = field(default_factory=dict)
    """What goes beside the image, by extension: `txt` for a caption, and so on."""
    keys: Mapping[str, Any] = field(default_factory=dict)
    """What the JSON member says besides, as far as the fields are not called so; JSON-able."""
    size: tuple[int, int] | None = None
    """Width and height of the data's picture as its header says them; read there where None."""


def shard_name(shard: int) -> str:
    """Return the name of the shard with this number: `00000`, `00001`, ..."""
    return f"{shard:05d}"


def output_key(name: str, index: int) -> str:
    """Return the key of the sample at `index` of the shard `name`: `000000000`, `000000001`, ..."""
    if not 0 <= index < SHARD_CAPACITY:
        raise ValueError(f"shard {name}: no key for sample {index}: the limit is {SHARD_CAPACITY}")
    return f"{name}{index:04d}"


def write_shard(out: Path, name: str, samples: Iterable[Sample]) -> dict[str, Any]:
    """Write the shard `name` into the folder `out` and return what its stats file holds.

    Samples are consumed one at a time; their order is the order in the shard. `width` and
    `height` are those of the written bytes. All three files are fsynced, the stats file is written
    last, and the same samples give the same bytes. The folder itself is the caller's to commit.
    """
    stats_path = out / f"{name}_stats.json"
    stats_path.unlink(missing_ok=True)

    columns: dict[str, list[Any]] = {column: [] for column in FIELDS}
    ranges: list[tuple[int, int]] = []
    with (out / f"{name}.tar").open("wb", buffering=_TOGETHER) as file:
        tar = TarWriter(file)
        for index, sample in enumerate(samples):
            row = _complete_row(output_key(name, index), sample)
            place = tar.add(f"{row['key']}.{sample.extension}", sample.data)
            tar.add(f"{row['key']}.json", _sample_json(row, sample.keys))
            for extension, data in sample.members.items():
                tar.add(f"{row['key']}.{extension}", data)
            ranges.append((place, len(sample.data)))
            for column, value in row.items():
                columns[column].append(value)
        tar.close()
        _sync(file)

    return _write_tables(out, name, _table(columns), ranges, tar.nbytes)


def drop_samples(shard: Path, keys: Collection[str], out: Path) -> dict[str, Any] | None:
    """Write a shard into the folder `out` without the samples of `keys`; return its stats.

    `shard` is its tar. What stays keeps its bytes, its place and its key, so the keys have gaps.
    None, and nothing is written, where no sample is left.
    """
    import pyarrow.parquet as pq

    name = shard.stem
    table = pq.read_table(shard.with_suffix(".parquet"))
    stays = [key not in keys for key in table["key"].to_pylist()]
    if not any(stays):
        return None
    with (
        tarfile.open(shard, "r:") as source,
        (out / shard.name).open("wb") as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for member in source:
            if member.name.partition(".")[0] not in keys:
                tar.addfile(member, source.extractfile(member))
        tar.close()
        _sync(file)
        nbytes = file.tell()
    table = table.filter(stays)
    ranges = list_ranges(out / shard.name, table["key"].to_pylist())
    return _write_tables(out, name, table, ranges, nbytes)


def _write_tables(
    out: Path, name: str, table: pa.Table, ranges: Sequence[tuple[int, int]], nbytes: int
) -> dict[str, Any]:
    """Write what stands beside a shard's tar of `nbytes`, and return what its stats file holds.

    `ranges` are those of `with_ranges`.
    """
    import pyarrow.parquet as pq

    table = with_ranges(table, ranges, nbytes)
    with (out / f"{name}.parquet").open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        _sync(file)

    count = len(table)
    stats = {
        "count": count,
        "successes": count,
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "status_dict": {"success": count},
        "bytes": nbytes,
    }
    with (out / f"{name}_stats.json").open("wb") as file:
        file.write(_json_bytes(stats))
        _sync(file)
    return stats


def _complete_row(key: str, sample: Sample) -> dict[str, str | int | float]:
    """Return every field of a sample, each with a value of the field's type."""
    if not sample.row.keys() <= _GIVEN:
        stray = ", ".join(sorted(sample.row.keys() - _GIVEN))
        raise ValueError(f"sample {sample.key}: no such field in a shard: {stray}")
    width, height = sample.size or _size(sample.data)
    given = {**sample.row, "key": key, "source_key": sample.key, "width": width, "height": height}
    return {name: _typed(given.get(name), default) for name, default in FIELDS.items()}


def _size(data: bytes) -> tuple[int, int]:
    from shared.pictures.images import read_header

    header = read_header(data)
    return header.width, header.height


def _typed(value: Any, default: str | int | float) -> str | int | float:
    """Return `value` as the type of `default`, which also stands in for None and NaN."""
    if value is None:
        return default
    if isinstance(default, str):
        text = str(value)
        if text.isascii():
            return text
        # A lone surrogate, which crawled JSON can spell, has no UTF-8 form.
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(default, float):
        # A float32 is written with the fewest digits that read back as the same float32.
        return float(str(np.float32(value))) if math.isfinite(value) else default
    return int(value)


def _sample_json(row: Mapping[str, Any], keys: Mapping[str, Any]) -> bytes:
    """Return what `_json_bytes` does of both, for less time where there are no `keys`."""
    if keys:
        return _json_bytes({**keys, **row})
    return _ROW_JSON.encode({name: row[name] for name in _IN_JSON}).encode("utf-8")


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")  # a lone surrogate stands as JSON's escape


def _table(columns: Mapping[str, list[Any]]) -> pa.Table:
    import pyarrow as pa

    types = {str: pa.string(), int: pa.int32(), float: pa.float32()}
    schema = pa.schema(
        pa.field(name, types[type(default)], nullable=False) for name, default in FIELDS.items()
    )
    return pa.table(dict(columns), schema=schema)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
