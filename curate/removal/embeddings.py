"""Takes the vectors of images out of the embeddings of a result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.export.embeddings import embedding_files
from curate.removal.gone import Gone


def drop_embeddings(out: Path, new: Path, gone: Sequence[Gone]) -> Iterator[str]:
    """Write the files that lose rows; yield the names of those that are not to be linked."""
    keys = pa.array([each.output_key for each in gone if each.output_key], pa.string())
    for vectors, metadata in embedding_files(out):
        table = pq.read_table(metadata)
        stays = pc.invert(pc.is_in(table["image_path"], keys))
        if pc.all(stays).as_py():
            continue
        for path in (vectors, metadata):
            (new / path.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
            yield path.relative_to(out).as_posix()
        kept = np.load(vectors, mmap_mode="r")[stays.to_numpy()]
        np.save(new / vectors.relative_to(out), kept)
        pq.write_table(table.filter(stays), new / metadata.relative_to(out), compression="zstd")
