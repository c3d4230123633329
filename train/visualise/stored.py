"""Nearest neighbours by vectors that lie beside a curated dataset, where the same model made them.

`lvd-curate run --set export.embeddings=true` leaves them in `OUT/embeddings`, in the order of the
shards (the layout of clip-retrieval), with the embedder's identity in `OUT/run.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.outputs import RESULT_MARKER
from shared.embedders.embedder import identity
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.progress import say
from shared.storage.files import fingerprint, read_optional
from shared.storage.remote import is_remote
from train.evaluation.neighbours import largest, neighbours
from train.frozen.names import parse_names


def stored_vectors(name: str, gallery: str, size: int | None) -> list[tuple[Path, list[str]]]:
    """Return the files of vectors of the images at `gallery`, with the keys of each one's rows.

    Nothing where no vectors lie beside these images. Others than the model `name` gives at its own size
    count as none, and one line says so.
    """
    out = None if is_remote(gallery) else _result(Path(gallery))
    files = [] if out is None else sorted((out / "embeddings" / "img_emb").glob("*.npy"))
    if out is None or not files:
        return []
    about = read_optional(out / RESULT_MARKER).get("embedders", {}).get("retrieve", {})
    if size is not None or not _is_of(name, about.get("identity")):
        say(f"the vectors in {out}/embeddings are by {about.get('name')}: embedding anew")
        return []
    keys = list(_keys(gallery, out))
    tables = sorted((out / "embeddings" / "metadata").glob("*.parquet"))
    found, start = [], 0
    for vectors, table in zip(files, tables, strict=True):
        names = pq.read_table(table, columns=["image_path"])["image_path"].to_pylist()
        own = keys[start : start + len(names)]
        if [key.rpartition("/")[2] for key in own] != names:
            say(f"the vectors in {out}/embeddings are not those of its shards: embedding anew")
            return []
        found.append((vectors, own))
        start += len(names)
    return found


def stored_neighbours(
    queries: Float[Tensor, "q d"], files: list[tuple[Path, list[str]]], k: int
) -> list[list[tuple[str, float]]]:
    """Return for each query keys and cosines of the `k` most similar rows, the first of equal ones."""
    best, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    keys: list[str] = []
    for path, own in files:
        # Copy on write: torch wants an array that may be written to, and nothing writes to it.
        bank = torch.from_numpy(np.load(path, mmap_mode="c"))
        cosines, columns = neighbours(queries, bank, k)
        best, kept = largest(torch.cat([best, cosines], dim=1), k)
        rows = torch.cat([rows, columns + len(keys)], dim=1).gather(1, kept)
        keys += own
    return [
        [(keys[row], cosine) for row, cosine in zip(*pair, strict=True)]
        for pair in zip(rows.tolist(), best.tolist(), strict=True)
    ]


def _result(place: Path) -> Path | None:
    """Return the result of lvd-curate whose images are all that a place stands for, if it is one."""
    out = place.parent if place.name == "shards" else place
    return out if (out / RESULT_MARKER).is_file() and (out / "shards").is_dir() else None


def _is_of(name: str, known: object) -> bool:
    """Tell whether a model is the embedder of this identity, at whatever precision."""
    [first, *more] = parse_names(name)
    if (
        more
        or not isinstance(known, dict)
        or not first.trained
        or first.kind not in ("timm", "open_clip")
    ):
        return False
    settings = EmbedderSettings(kind=first.kind, model=first.model, pretrained=first.tag or True)
    try:
        own = identity(settings)
    except LvdError:  # it cannot be had: loading it says so
        return False
    return fingerprint({**own, "precision": None}) == fingerprint({**known, "precision": None})


def _keys(gallery: str, out: Path) -> Iterator[str]:
    """Yield the keys of a result's images, in the order of its shards."""
    for part in list_parts("--neighbours", DatasetSettings(path=gallery)):
        table = out / "shards" / f"{part.name.rpartition('/')[2]}.parquet"
        for key in pq.read_table(table, columns=["key"])["key"].to_pylist():
            yield f"{part.name}/{key}"
