"""The index of a selection list: where in a crawl the bytes of each selected image are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.datasets.dataset import DatasetSettings, Part, list_parts
from shared.datasets.listing import File, ListingError, Place, expand
from shared.datasets.outputs import LIST, is_listed
from shared.errors import LvdError
from shared.keys import shown
from shared.pictures.images import ImageError
from shared.storage.files import fingerprint, reraise_disk_full
from shared.storage.remote import locate, open_binary
from train.data.file_ranges import Range
from train.data.index import MappedIndex, written
from train.data.index_files import note_use, remove_unused
from train.data.listed_files import ListedFiles
from train.data.order import UNIT

_NEEDED = {"key": pa.string(), "part": pa.string(), "offset": pa.int64(), "size": pa.int64()}
_OPTIONAL = {"sha256": pa.string(), "weight": pa.float64(), "seed": pa.string()}
_ROWS = pa.schema(
    [
        ("key", pa.string()),
        ("file", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("weight", pa.int64()),
    ]
)
_FILES = pa.schema([("location", pa.binary())])
_ABOUT = b"lvd"


class SelectionIndex(MappedIndex):
    """The images of a list by number, in its order; its row groups are the parts.

    100 bytes an image and its key's text, and the path of each file that holds some. Bytes whose
    sha256 is not the list's are an ImageError: the image has changed since it was selected.
    """

    def __init__(self, path: Path) -> None:
        """Map the files that `read_selection` wrote."""
        files = pa.ipc.open_file(pa.memory_map(str(_files_beside(path))))
        about = json.loads(files.schema.metadata[_ABOUT])
        super().__init__(path, about["sizes"], about["fingerprint"])
        self._locations = files.get_batch(0).column("location")
        self.weights: ListedWeights | None = None
        """How often each image is drawn; None where it is once, all of them."""
        if about["weighted"]:
            self.weights = ListedWeights(self, np.array(about["totals"], np.int64))

    def read_each(self, numbers: Sequence[int]) -> Iterator[bytes | ImageError]:
        """Yield each image's bytes or the reason why not; remote ones are fetched side by side."""
        for number, data in zip(numbers, super().read_each(numbers), strict=True):
            [expected] = self._row(number, "sha256")
            same = isinstance(data, ImageError) or not expected or _sha256(data) == expected
            yield data if same else ImageError("it has changed since it was selected (sha256)")

    def weights_of(self, part: int) -> NDArray[np.int64]:
        """Return the weight of each image of a part, in units of 1 / `order.UNIT`."""
        return self._table.get_batch(part).column("weight").to_numpy()

    def _range(self, number: int) -> Range:
        file, offset, size = self._row(number, "file", "offset", "size")
        return Range(_decoded(self._locations[file].as_py()), offset, size, None)


@dataclass
class ListedWeights:
    """The weights of a list, as `Order` takes them."""

    index: SelectionIndex
    totals: NDArray[np.int64]

    def of_part(self, part: int) -> NDArray[np.int64]:
        """Return the weight of each image of a part."""
        return self.index.weights_of(part)


def read_selection(select: str, shards: str | None, folder: Path) -> SelectionIndex:
    """Return the index of the images that a list names, made in `folder` where it is not there.

    `select` is a list, or the OUT of a run with `export.format=list`; `shards` is where the crawl is
    now, by default where it was when the list was made. Of a list are needed `key`, `part` (the path
    or URL of a file), `offset` and `size` (an image's bytes in it); `sha256`, `weight` (1) and `seed`
    (of an image that was no part of the crawl) count where they are there. Raises LvdError where the
    list is none, or one of its files is not to be found.
    """
    place, files = _find_list(select)
    parts = list_parts("--shards", DatasetSettings(path=shards)) if shards is not None else []
    stamp = fingerprint(
        [
            [[locate(place.root, file.path), file.size, file.stamp] for file in files],
            [[part.name, locate(part.root, ""), part.fingerprint] for part in parts],
        ]
    )
    path = folder / f"{stamp}.arrow"
    if not path.exists():
        with reraise_disk_full(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write(select, place, files, shards, parts, path)
    note_use(folder.glob(f"{stamp}.*"))
    remove_unused(folder)
    return SelectionIndex(path)


def count_selected(select: str) -> int:
    """Return how many images a list names; LvdError where it is none."""
    place, files = _find_list(select)
    return sum(_open(select, place, file).metadata.num_rows for file in files)


def _find_list(select: str) -> tuple[Place, list[File]]:
    try:
        place = expand(select)
    except ListingError as error:
        raise LvdError(f"--select: no list at {select!r}: {error}: {_REMEDY}") from error
    tables = [file for file in place.files if file.path.endswith(".parquet")]
    own = [file for file in tables if is_listed(file.path)]
    if not (own or tables):
        raise LvdError(f"--select: no list at {select!r}: no Parquet file is there: {_REMEDY}")
    return place, own or tables


_REMEDY = f"name a {LIST}, or the OUT of lvd-curate run --set export.format=list"


def _open(select: str, place: Place, file: File) -> pq.ParquetFile:
    location = locate(place.root, file.path)
    try:
        table = pq.ParquetFile(open_binary(location))
    except pa.ArrowException as error:
        raise LvdError(
            f"--select {select}: {shown(location)} is no Parquet file: {_REMEDY}"
        ) from error
    if missing := [name for name in _NEEDED if name not in table.schema_arrow.names]:
        raise LvdError(
            f"--select {select}: {shown(location)} is no selection list (it has no column "
            f"{missing[0]}): {_REMEDY}"
        )
    return table


def _write(
    select: str,
    place: Place,
    files: Sequence[File],
    shards: str | None,
    parts: Sequence[Part],
    path: Path,
) -> None:
    """Write the rows of a list to `path`, a record batch for each row group, and beside it its files."""
    listed = ListedFiles(select, shards, parts)
    digest = hashlib.blake2b(digest_size=16)
    sizes: list[int] = []
    totals: list[int] = []
    weighted = False
    with written(path) as beside:
        with pa.ipc.new_file(str(beside), _ROWS) as rows:
            for file in files:
                for group in _groups(select, _open(select, place, file)):
                    batch = _batch(select, group, listed)
                    for name in ("key", "size", "sha256", "weight"):
                        digest.update(json.dumps(batch.column(name).to_pylist()).encode())
                    weights = batch.column("weight").to_numpy()
                    weighted = weighted or bool((weights != UNIT).any())
                    sizes.append(len(batch))
                    totals.append(int(weights.sum()))
                    rows.write_batch(batch)
        if not sizes:
            raise LvdError(f"--select {select}: the list is empty: name another")
        about = {"sizes": sizes, "totals": totals, "weighted": weighted}
        about["fingerprint"] = digest.hexdigest()
        _write_files(_files_beside(path), listed.locations, about)


def _groups(select: str, table: pq.ParquetFile) -> Iterator[pa.Table]:
    """Yield the row groups that hold anything, each column of the type that it is to have."""
    types = {**_NEEDED, **_OPTIONAL}
    columns = [name for name in types if name in table.schema_arrow.names]
    for number in range(table.num_row_groups):
        group = table.read_row_group(number, columns=columns)
        try:
            typed = pa.table({name: group[name].cast(types[name]) for name in columns})
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())
            raise LvdError(
                f"--select {select}: a column is not of its type ({reason}): {_REMEDY}"
            ) from error
        if len(typed):
            yield typed


def _batch(select: str, group: pa.Table, listed: ListedFiles) -> pa.RecordBatch:
    count, there = group.num_rows, set(group.column_names)
    for name in _NEEDED:
        if group[name].null_count:
            raise LvdError(f"--select {select}: the list has rows without {name}: make it anew")
    for name in ("offset", "size"):
        if pc.min(group[name]).as_py() < 0:
            raise LvdError(f"--select {select}: the list has a {name} below 0: make it anew")
    seeds = group["seed"].is_valid().to_pylist() if "seed" in there else [False] * count
    codes = [listed.code(*of) for of in zip(group["part"].to_pylist(), seeds, strict=True)]
    columns = {
        **{name: group[name] for name in ("key", "offset", "size")},
        "file": pa.array(codes),
        "sha256": group["sha256"] if "sha256" in there else pa.nulls(count),
        "weight": pa.array(_weights(select, group)),
    }
    table = pa.table([columns[name].cast(_ROWS.field(name).type) for name in _ROWS.names], _ROWS)
    return table.combine_chunks().to_batches()[0]


def _weights(select: str, group: pa.Table) -> NDArray[np.int64]:
    """Return the weights of a row group in units of 1 / UNIT, to the nearest one."""
    if "weight" not in group.column_names:
        return np.full(group.num_rows, UNIT)
    weights = group["weight"].to_numpy()
    if wrong := np.flatnonzero(~(np.isfinite(weights) & (weights >= 0))).tolist():
        key, weight = group["key"][wrong[0]].as_py(), group["weight"][wrong[0]].as_py()
        raise LvdError(
            f"--select {select}: the weight of {key} is {weight}: give numbers from 0 on: 1 is once "
            "an epoch"
        )
    return np.rint(weights * UNIT).astype(np.int64)


def _write_files(path: Path, locations: Sequence[str], about: dict[str, Any]) -> None:
    schema = _FILES.with_metadata({_ABOUT: json.dumps(about)})
    batch = pa.record_batch([pa.array(map(_encoded, locations), pa.binary())], schema=schema)
    with written(path) as beside, pa.ipc.new_file(str(beside), schema) as file:
        file.write_batch(batch)


def _files_beside(path: Path) -> Path:
    return path.with_suffix(".files.arrow")


def _encoded(location: str) -> bytes:
    return location.encode("utf-8", "surrogateescape")


def _decoded(location: bytes) -> str:
    return location.decode("utf-8", "surrogateescape")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
