"""Stage text: the captions that a seed consists of, as a dataset embedded by a model's text tower.

A caption is an "image" whose key is its text, without a size or bytes to be read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.catalogue.collection import Catalogued, Collection, PartOutputs
from curate.catalogue.part_files import COLUMNS, FACTS, ROW_GROUP, VALID, VECTORS
from curate.catalogue.write import VERSION as CATALOGUE_VERSION
from curate.catalogue.write import Judged, catalogue
from curate.stage import Runner, Stage, Unit
from shared.embedders.embedder import identity
from shared.embedders.settings import EmbedderSettings
from shared.storage.commits import digest_of

VERSION = 1


def embed_text(
    runner: Runner, name: str, texts: Sequence[str], embedder: EmbedderSettings, threads: int
) -> Catalogued:
    """Return captions as a dataset of no parts, as an open_clip embedder sees them."""
    texts = sorted(texts, key=str.encode)
    stage = Stage("text", VERSION, identity(embedder), [texts, threads])
    runner.run(stage, write_text, [Unit("all", (texts, embedder, threads))])
    unit = runner.folder(stage) / "all"
    place = str(unit.relative_to(runner.work))
    output = PartOutputs("text", "", place, None, place, interleaves=True)
    made = Stage("catalogue", CATALOGUE_VERSION, [vars(output), digest_of(unit)])
    runner.run(made, catalogue, [Unit("all", ([output], runner.work, Judged()))])
    return Catalogued(name, [], Collection(runner.folder(made) / "all"), made.address)


def write_text(
    texts: list[str], embedder: EmbedderSettings, threads: int, *, out: Path
) -> dict[str, int]:
    """Write the facts and vectors of captions as those of a part, in their order."""
    from shared.embedders.open_clip_embedder import embed_texts

    vectors = embed_texts(embedder, texts, threads).astype(np.float16)
    data = [text.encode() for text in texts]
    nulls = [None] * len(texts)
    values = {
        "name": texts,
        "member": texts,
        "url": nulls,
        "caption": texts,
        "sha256": [hashlib.sha256(each).hexdigest() for each in data],
        "width": nulls,
        "height": nulls,
        "format": ["text"] * len(texts),
        "bytes": [len(each) for each in data],
        "offset": nulls,
        "problem": [""] * len(texts),
        "contrast": [0.0] * len(texts),
    }
    pq.write_table(
        pa.table(values, COLUMNS), out / FACTS, row_group_size=ROW_GROUP, compression="zstd"
    )
    np.save(out / VECTORS, vectors)
    np.save(out / VALID, np.isfinite(vectors).all(1) & (vectors != 0).any(1))
    return {"images": len(texts)}
