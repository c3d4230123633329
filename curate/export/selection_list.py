"""Stage export without copies: a list that says where the bytes of each kept image are.

Its rows are in the order of the shards that would have been, a row group for each, so that a trainer
shuffles a list as it does shards. A map over blocks of whole row groups, each a file of the list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32

from curate.catalogue.collection import BLOCK, Catalogued, Collection, Numbers
from curate.catalogue.originals import load_parts, save_parts
from curate.selection.decide import Selected
from curate.stage import Runner, Unit
from shared.datasets import Part
from shared.errors import LvdError
from shared.failures import reword
from shared.keys import shown
from shared.parts import direct
from shared.remote import locate
from shared.shards import output_key, shard_name

VERSION = 1
NAME = "selection"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("part", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("weight", pa.int32()),
        ("seed", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("output_key", pa.string()),
    ]
)
"""`part` is the path or URL of a tar, or of an image's own file; the image is `size` bytes of it from
`offset` on. `seed` is the included seed that it is of, null for what was crawled. `weight` is how
often it is to be drawn in an epoch."""
FACTS = ("member", "offset", "bytes", "sha256", "url", "caption")
_LOOKED_AT_ONCE = 16


@dataclass(frozen=True)
class ListedSource:
    """A dataset with kept images: the crawl, or a seed that is included."""

    seed: str | None
    data: Collection
    parts: Path
    """What `originals.save_parts` wrote."""


@runtime_checkable
class ListFolders(Protocol):
    """Where a result with a list is built."""

    partial: Path
    tables: Path
    scratch: Path

    def lay_tables(self, names: Iterable[str], units: list[Path], into: Path) -> None:
        """Put the units' tables of these names into a folder."""
        ...


def require_direct(dataset: str, parts: Sequence[Part]) -> None:
    """Raise LvdError where a list cannot name the images of a dataset: they are no plain bytes."""
    with reword(f"dataset {dataset!r}"), ThreadPoolExecutor(_LOOKED_AT_ONCE) as pool:
        for part, is_direct in zip(parts, pool.map(direct, parts), strict=True):
            if not is_direct:
                kind = "a Parquet file" if part.format == "parquet" else "a compressed tar"
                raise LvdError(
                    f"dataset {dataset!r}: {shown(locate(part.root, part.paths[0]))} is {kind}, whose "
                    "images no list can name: unpack it to a plain tar or a folder of images, or "
                    "say export.format=shards"
                )


def export_list(
    runner: Runner,
    folders: ListFolders,
    datasets: Sequence[Catalogued],
    selected: Selected,
    shard_size: int,
) -> None:
    """List the kept images of the crawl and the included seeds in `selection.parquet`."""
    with runner.at_work("export"):
        sources = [
            ListedSource(
                seed=each.name if place else None,
                data=each.collection,
                parts=save_parts(each.parts, runner.scratch / f"parts-{each.address}.json"),
            )
            for place, each in enumerate(datasets)
        ]
        at_once = max(1, BLOCK // shard_size) * shard_size
        starts = range(0, max(1, selected.exported), at_once)
        blocks = [(start, min(start + at_once, selected.exported)) for start in starts]
        units = [
            Unit(
                f"{NAME}-{block:05d}",
                (sources, selected.folder, start, stop, shard_size),
                stop - start,
            )
            for block, (start, stop) in enumerate(blocks)
        ]
        runner.run(folders.tables, list_images, units, scratch=folders.scratch)
        folders.lay_tables([NAME], [folders.tables / unit.name for unit in units], folders.partial)


def list_images(
    sources: Sequence[ListedSource],
    selected: Path,
    start: int,
    stop: int,
    shard_size: int,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write `selection.parquet` of the kept images at the places from `start` to `stop`."""
    places, numbers = (
        np.array(np.load(selected / name, mmap_mode="r")[start:stop])
        for name in ("source.npy", "order.npy")
    )
    tables, rows = [SCHEMA.empty_table()], [np.empty(0, np.int64)]
    for place in np.unique(places).tolist():
        where = np.flatnonzero(places == place)
        keys = [_output_key(start + row, shard_size) for row in where.tolist()]
        weights = _weights(selected, place, numbers[where])
        tables.append(_rows(sources[place], numbers[where], weights, keys))
        rows.append(where)
    table = pa.concat_tables(tables).take(np.argsort(np.concatenate(rows)))
    path = out / f"{NAME}.parquet"
    pq.write_table(table, path, row_group_size=shard_size, compression="zstd")
    return {"images": stop - start}


def list_files(out: Path) -> list[Path]:
    """Return the files of the list of a result, in the order of their rows; none where it has none."""
    path = out / f"{NAME}.parquet"
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    return [path] if path.exists() else []


def _rows(
    source: ListedSource, numbers: Numbers, weights: Int32[np.ndarray, " n"], keys: list[str]
) -> pa.Table:
    facts = source.data.facts(numbers, FACTS)
    parts = [load_parts(source.parts)[part] for part in source.data.part_of(numbers).tolist()]
    files = [_file(*of) for of in zip(parts, facts["member"].to_pylist(), strict=True)]
    values = {
        **{name: facts[name] for name in ("key", "member", "sha256", "url", "caption")},
        "part": pa.array(files, pa.string()),
        "offset": facts["offset"].fill_null(0),
        "size": facts["bytes"],
        "weight": pa.array(weights),
        "seed": pa.array([source.seed] * len(numbers), pa.string()),
        "output_key": pa.array(keys, pa.string()),
    }
    return pa.table([values[name] for name in SCHEMA.names], schema=SCHEMA)


def _file(part: Part, member: str) -> str:
    """Return the path or URL of the file that holds an image, as text."""
    path = part.path_of(member) if part.format == "folder" else part.paths[0]
    return shown(locate(part.root, path))


def _weights(selected: Path, place: int, numbers: Numbers) -> Int32[np.ndarray, " n"]:
    """Return how often images are to be drawn: once, unless `select` has weights for the crawl."""
    path = selected / "weight.npy"
    if place or not path.exists():
        return np.ones(len(numbers), np.int32)
    weights: Int32[np.ndarray, " n"] = np.load(path, mmap_mode="r")[numbers]
    return weights


def _output_key(place: int, shard_size: int) -> str:
    return output_key(shard_name(place // shard_size), place % shard_size)
