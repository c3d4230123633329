"""The vectors of the kept images in clip-retrieval's layout: `img_emb/img_emb_0.npy` and its table.

What reads that layout (clip-retrieval's `index` and `back`, autofaiss) pairs the files of both folders
by their order, so that numbers have leading zeros where there are ten files or more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.catalogue.collection import Collection
from curate.export.bounds import ShardBounds
from curate.stage import Runner, Unit
from shared.storage.files import link_or_copy

VERSION = 1
SHARDS = 100
"""Shards whose images one file holds."""
ROWS = 1_000
"""Images looked at together."""
VECTORS, METADATA = "img_emb", "metadata"
"""Folders, and what files in them begin with."""
SCHEMA = pa.schema(
    [
        ("image_path", pa.string()),
        ("caption", pa.string()),
        ("url", pa.string()),
        ("key", pa.string()),
    ]
)
"""`image_path` is a sample's key in its shard, as clip-retrieval has it; `key` that of the reports."""


@runtime_checkable
class EmbeddingFolders(Protocol):
    """Where a result is built; all on one file system."""

    embeddings: Path
    spill: Path
    scratch: Path


def export_embeddings(
    runner: Runner,
    folders: EmbeddingFolders,
    datasets: Sequence[Collection],
    selected: Path,
    bounds: ShardBounds,
) -> None:
    """Write the stored vectors of the kept images, in the order of the shards; zeros where one has none.

    `datasets` are the crawl and the included seeds as the embedder sees them whose vectors these are.
    """
    units = [
        Unit(
            f"embeddings-{number:05d}",
            (tuple(datasets), selected, bounds, start, stop),
            stop - start,
        )
        for number, (start, stop) in enumerate(pairwise(_edges(bounds)))
    ]
    runner.run(folders.spill, write_embeddings, units, scratch=folders.scratch)
    digits = len(str(len(units)))
    for number, unit in enumerate(units):
        for kind, end in ((VECTORS, "npy"), (METADATA, "parquet")):
            path = folders.embeddings / kind / f"{kind}_{number:0{digits}d}.{end}"
            link_or_copy(folders.spill / unit.name / f"{kind}.{end}", path)


def _edges(bounds: ShardBounds) -> list[int]:
    """Return where the files begin, and where the last ends, in the order of the kept images."""
    edges = bounds.edges.tolist()
    return [*range(0, edges[0], SHARDS * ROWS), *edges[:-1:SHARDS], edges[-1]]


def write_embeddings(
    datasets: Sequence[Collection],
    selected: Path,
    bounds: ShardBounds,
    start: int,
    stop: int,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write the vectors of the images at the places `start` to `stop`, float16 [n, d], and a row for
    each; `ROWS` of them in memory."""
    shape = (stop - start, datasets[0].dim)
    vectors = np.lib.format.open_memmap(out / f"{VECTORS}.npy", "w+", np.float16, shape)
    with pq.ParquetWriter(out / f"{METADATA}.parquet", SCHEMA, compression="zstd") as writer:
        for first in range(start, stop, ROWS):
            places = slice(first, min(first + ROWS, stop))
            sources, numbers = (
                np.array(np.load(selected / name, mmap_mode="r")[places])
                for name in ("source.npy", "order.npy")
            )
            _, keys = bounds.outputs(np.arange(places.start, places.stop))
            rows: list[dict[str, Any]] = [{"image_path": key} for key in keys.to_pylist()]
            for source in np.unique(sources).tolist():
                where = np.flatnonzero(sources == source)
                data, own = datasets[source], numbers[where]
                vectors[places.start - start + where] = data.vectors(own)
                facts = data.facts(own, ["caption", "url"]).to_pylist()
                for row, fact in zip(where.tolist(), facts, strict=True):
                    rows[row] |= fact
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    return {"images": stop - start}


def embedding_files(out: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the files of vectors of a result, each with its table."""
    vectors = sorted((out / "embeddings" / VECTORS).glob("*.npy"))
    tables = sorted((out / "embeddings" / METADATA).glob("*.parquet"))
    yield from zip(vectors, tables, strict=True)
