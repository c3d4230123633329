"""Finds the crawled images that are nearest to pictures, texts or images of the crawl itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float16

from curate.embedding.embed import Forwards, preparation
from curate.embedding.new_vectors import to_stored
from curate.neighbours.in_dataset import nearest_images
from curate.neighbours.search import use_threads
from curate.search.stored import StoredCrawl, reading
from shared.commands import called
from shared.errors import LvdError
from shared.pictures.images import ImageError, decode
from shared.progress import printable

OF_IMAGES = {
    "key": pa.string(),
    "decision": pa.string(),
    "reason": pa.string(),
    "part": pa.string(),
    "member": pa.string(),
    "url": pa.string(),
    "duplicate_of": pa.string(),
    "nearest_seed": pa.string(),
    "seed_similarity": pa.float32(),
    "output_shard": pa.string(),
    "output_key": pa.string(),
}
"""What is told of an image that is found, as `images.parquet` has it."""
SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("rank", pa.int32()),
        ("similarity", pa.float32()),
        *OF_IMAGES.items(),
    ]
)
Vectors = Float16[np.ndarray, "n d"]


@dataclass(frozen=True)
class Queries:
    """What is searched for, with its vectors as the pipeline stores them."""

    names: list[str]
    vectors: Vectors
    files: tuple[Path, ...] = ()
    """The pictures, where that is what they are."""


def of_pictures(stored: StoredCrawl, files: Sequence[Path]) -> Queries:
    """Embed pictures by the embedder of the run, a batch of them in memory at a time.

    Raises LvdError, in one line, for a file that is no picture.
    """
    settings = stored.embedder()
    limit = stored.run["settings"]["embed"]["max_pixels"]
    prepare = preparation(settings)
    forwards: Forwards | None = None
    found = []
    for at in range(0, len(files), settings.batch_size):
        batch = []
        for path in files[at : at + settings.batch_size]:
            try:
                image = decode(path.read_bytes(), max_pixels=limit, reduce_to=prepare.reduce_to)
            except (OSError, ImageError) as error:
                said = error.strerror if isinstance(error, OSError) else error
                raise LvdError(f"IMAGE {path}: {said}: name a picture") from error
            batch.append(prepare.prepare(image))
        forwards = forwards or Forwards((settings,), stored.threads)
        vectors, usable = to_stored(forwards.embed(0, batch))
        if not usable.all():
            path = files[at + int(np.flatnonzero(~usable)[0])]
            raise LvdError(f"IMAGE {path}: embedder {stored.embedder_name} gives it no vector")
        found.append(vectors)
    return Queries([str(path) for path in files], np.concatenate(found), tuple(files))


def of_texts(stored: StoredCrawl, texts: Sequence[str]) -> Queries:
    """Embed texts by the text tower of the run's embedder; LvdError where it has none."""
    settings = stored.embedder()
    if settings.kind != "open_clip":
        raise LvdError(
            f"--text: {stored.embedder_name}, by which {stored.out} judges meaning, is of kind "
            f"{settings.kind} and has no tower for text: curate with retrieve.embedder of kind "
            "open_clip, or search by a picture"
        )
    if blank := [text for text in texts if not text.strip()]:
        raise LvdError(f"--text {blank[0]!r} is empty: say what to look for")
    from shared.embedders.open_clip_embedder import embed_texts

    vectors, _ = to_stored(embed_texts(settings, texts, stored.threads))
    return Queries(list(texts), vectors)


def of_keys(stored: StoredCrawl, keys: Sequence[str]) -> Queries:
    """Take the stored vectors of crawled images; LvdError for a key without one."""
    with reading(stored):
        numbers = [stored.collection.find(key) for key in keys]
        for key, number in zip(keys, numbers, strict=True):
            if number is None or stored.collection.canonical[number] < 0:
                kind = "has no vector" if number is not None else "is no key of the crawl"
                raise LvdError(
                    f"--key '{printable(key)}' {kind}: see `{called('lvd-curate')} explain {stored.out} KEY`"
                )
        return Queries(list(keys), stored.collection.vectors(np.array(numbers, np.int64)))


def search(
    stored: StoredCrawl, queries: Queries, k: int, decisions: tuple[str, ...] = ()
) -> pa.Table:
    """Return the `k` crawled images that are most similar to every query, as `SCHEMA` says.

    Of images that have a vector and were decided about in one of the ways of `decisions`, or in any;
    by falling similarity, ties by key. Besides what `nearest_images` holds, a byte an image where
    decisions are asked for. LvdError where the work folder does not hold the vectors any more, or
    holds those of other images.
    """
    use_threads(stored.threads)
    with reading(stored):
        among = stored.decided(decisions) if decisions else None
        if among is not None and len(among) != len(stored.collection):
            raise _other(stored)
        similarity, numbers = nearest_images(queries.vectors, stored.collection, k, among)
        flat = numbers.ravel()
        rows = stored.rows(stored.collection.place[flat], list(OF_IMAGES))
        if rows["key"].to_pylist() != stored.collection.keys(flat):
            raise _other(stored)
    names = np.repeat(np.array(queries.names, object), numbers.shape[1])
    columns = {
        "query": pa.array(names, pa.string()),
        "rank": pa.array(np.tile(np.arange(numbers.shape[1]), len(numbers)), pa.int32()),
        "similarity": pa.array(similarity.ravel(), pa.float32()),
        **{name: rows[name].cast(kind) for name, kind in OF_IMAGES.items()},
    }
    return pa.table(columns, schema=SCHEMA)


def _other(stored: StoredCrawl) -> LvdError:
    return LvdError(
        f"the reports of {stored.out} speak of other images than its run did: see `lvd-curate verify "
        f"{stored.out}`"
    )
