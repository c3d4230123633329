"""Stage export without copies: a list that says where the bytes of each kept image are.

Its rows are in the order of the shards that would have been, a row group for each, so that a trainer
shuffles a list as it does shards. A map over blocks of whole row groups, each a file of the list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32

from curate.catalogue.collection import Catalogued, Collection, Numbers
from curate.catalogue.originals import load_parts, save_parts
from curate.export.bounds import ShardBounds
from curate.selection.decide import Selected
from curate.stage import Runner, Unit
from shared.datasets.dataset import Part
from shared.datasets.outputs import LIST
from shared.datasets.single_images import direct
from shared.errors import LvdError
from shared.keys import shown
from shared.storage.failures import reword
from shared.storage.remote import locate

VERSION = 1
NAME = Path(LIST).stem
BLOCK = 262_144
"""Images of one unit, about."""
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
                kind = {"parquet": "a Parquet file", "list": "a list itself"}.get(part.format)
                remedy = "unpack it to a plain tar or a folder of images"
                if part.format == "list":
                    remedy = "name the crawl that it was made of"
                raise LvdError(
                    f"dataset {dataset!r}: {shown(locate(part.root, part.paths[0]))} is "
                    f"{kind or 'a compressed tar'}, whose images no list can name: {remedy}, or say "
                    "export.format=shards"
                )


def export_list(
    runner: Runner,
    folders: ListFolders,
    datasets: Sequence[Catalogued],
    selected: Selected,
    bounds: ShardBounds,
) -> None:
    """List the kept images of the crawl and the included seeds in `selection.parquet`."""
    sources = [
        ListedSource(
            seed=each.name if place else None,
            data=each.collection,
            parts=save_parts(each.parts, runner.scratch / f"parts-{each.address}.json"),
        )
        for place, each in enumerate(datasets)
    ]
    units = [
        Unit(
            f"{NAME}-{block:05d}",
            (sources, selected.folder, bounds, edges),
            edges[-1] - edges[0],
        )
        for block, edges in enumerate(_blocks(bounds.all_edges().tolist()))
    ]
    runner.run(folders.tables, list_images, units, scratch=folders.scratch)
    folders.lay_tables([NAME], [folders.tables / unit.name for unit in units], folders.partial)


def _blocks(edges: list[int]) -> Iterator[list[int]]:
    """Yield the edges of row groups, some `BLOCK` images at a time; one block at least."""
    first = 0
    for at in range(1, len(edges)):
        if edges[at] - edges[first] >= BLOCK or at == len(edges) - 1:
            yield edges[first : at + 1]
            first = at
    if len(edges) == 1:
        yield edges * 2


def list_images(
    sources: Sequence[ListedSource],
    selected: Path,
    bounds: ShardBounds,
    edges: list[int],
    *,
    out: Path,
) -> dict[str, Any]:
    """Write `selection.parquet` of the kept images, a row group from each of `edges` to the next."""
    start, stop = edges[0], edges[-1]
    places, numbers = (
        np.array(np.load(selected / name, mmap_mode="r")[start:stop])
        for name in ("source.npy", "order.npy")
    )
    outputs = bounds.outputs(np.arange(start, stop))[1].to_pylist()
    tables, rows = [SCHEMA.empty_table()], [np.empty(0, np.int64)]
    for place in np.unique(places).tolist():
        where = np.flatnonzero(places == place)
        keys = [outputs[row] for row in where.tolist()]
        weights = _weights(selected, place, numbers[where])
        tables.append(_rows(sources[place], numbers[where], weights, keys))
        rows.append(where)
    table = pa.concat_tables(tables).take(np.argsort(np.concatenate(rows)))
    with pq.ParquetWriter(out / f"{NAME}.parquet", SCHEMA, compression="zstd") as writer:
        for first, last in pairwise(edges):
            group = table.slice(first - start, last - first)
            writer.write_table(group, row_group_size=max(1, len(group)))
    return {"images": stop - start}


def list_files(out: Path) -> list[Path]:
    """Return the files of the list of a result, in the order of their rows; none where it has none."""
    path = out / f"{NAME}.parquet"
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    return [path] if path.exists() else []


def _rows(
    source: ListedSource, numbers: Numbers, weights: Int32[np.ndarray, " n"], keys: list[str | None]
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
