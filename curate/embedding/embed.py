"""Stage embed: a part's images become a table of facts and a file of vectors.

A map over parts. Rows in = rows out: what cannot be read or decoded is a row with a problem. Facts
are sorted by key, and vectors stand in the order of their images' keys.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from curate.embedding.suspects import Decoder, Journal
from curate.filters.judge import score_column
from shared.embedders import Embedder, EmbedderSettings, identity, load
from shared.images import Header, ImageError, read_header
from shared.parts import Member, Part, PartReader
from shared.storage import PROGRESS, digest_file, fingerprint

VERSION = 1
FACTS = "facts.parquet"
VECTORS = "vectors.npy"
LONGEST_SIDE = 2**31 - 1
"""The longest side that the facts can hold; hostile headers say more."""

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("member", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("bytes", pa.int64()),
        ("offset", pa.int64()),
        ("problem", pa.string()),
        ("contrast", pa.float32()),
        ("vector", pa.int32()),
    ]
)
"""`vector` is a row of the vectors' file, or -1; `contrast` the luminance's standard deviation."""


class EmbedSettings(BaseModel):
    """How images are read."""

    model_config = ConfigDict(extra="forbid")

    max_pixels: int = Field(178_956_970, ge=1)
    """Images of more pixels by their header are `corrupt`, undecoded."""
    decode_seconds: float = Field(60, gt=0)
    """Images that take longer to decode are `corrupt`."""
    decode_threads: int | None = Field(None, ge=1)
    """Threads that decode ahead of the forward pass; by default the task's threads."""


def embed_fingerprint(
    embedder: EmbedderSettings, settings: EmbedSettings, columns: list[str], threads: int
) -> str:
    """Return the address of everything embedded with these settings."""
    return fingerprint(
        {
            "stage": "embed",
            "version": VERSION,
            "embedder": identity(embedder),
            "max_pixels": settings.max_pixels,
            "columns": columns,
            "threads": threads,
        }
    )


def unit_name(part: Part) -> str:
    """Return the folder name of a part: readable, and another one when the part's bytes change."""
    readable = "".join(c if c.isalnum() or c in "-_." else "_" for c in part.name)[-48:]
    return f"{readable}-{fingerprint([part.name, part.fingerprint])}"


@dataclass
class _Row:
    member: Member
    header: Header | None = None
    sha256: str | None = None
    size: int = 0
    problem: str = ""
    contrast: float = 0.0
    vector: int = -1
    prepared: np.ndarray | None = None


def load_embedder(embedder: EmbedderSettings, threads: int) -> Embedder:
    """Return the loaded embedder: what an embed worker holds."""
    return load(embedder, threads)


def embed_part(
    embedder: Embedder,
    part: Part,
    settings: EmbedSettings,
    configured: EmbedderSettings,
    columns: list[str],
    threads: int,
    *,
    out: Path,
) -> dict:
    """Write `facts.parquet` and float16 `vectors.npy` [n, d] of one part into `out`.

    Returns the number of images and of vectors, the part's problems, and a digest of both files.
    """
    batch_size = configured.batch_size
    rows: list[_Row] = []
    vectors: list[np.ndarray] = []
    batch: list[_Row] = []
    count = 0

    def flush() -> None:
        nonlocal count
        stored = _stored(embedder.embed([row.prepared for row in batch]))
        usable = np.flatnonzero(np.isfinite(stored).all(1) & (stored != 0).any(1))
        for at in usable:
            batch[at].vector = count
            count += 1
        vectors.append(stored[usable])
        for row in batch:
            row.prepared = None
        batch.clear()
        (out / PROGRESS).write_text(str(len(rows)))

    with (
        tempfile.TemporaryDirectory(dir=out.parent) as spool,
        PartReader(part, Path(spool), columns) as reader,
        Journal(out.with_name(f"{unit_name(part)}.decoding")) as journal,
        Decoder(
            journal,
            max_pixels=settings.max_pixels,
            reduce_to=embedder.reduce_to,
            seconds=settings.decode_seconds,
        ) as decoder,
    ):
        read = partial(_read, reader, decoder, embedder)
        for row in _ahead(reader.members, read, 2 * batch_size, settings.decode_threads or threads):
            rows.append(row)
            if row.prepared is not None:
                batch.append(row)
            if len(batch) == batch_size:
                flush()
        if batch:
            flush()
        problems = reader.problems
    _write(rows, vectors, embedder.dim, columns, out)
    return {
        "images": len(rows),
        "vectors": count,
        "corrupt": sum(bool(row.problem) for row in rows),
        "problems": problems,
        "ignored": reader.ignored,
        "ignored_examples": reader.ignored_examples,
        "digest": fingerprint([digest_file(out / FACTS), digest_file(out / VECTORS)]),
    }


def _ahead(
    members: list[Member], read: Callable[[Member], _Row], ahead: int, threads: int
) -> Iterator[_Row]:
    """Yield the rows in key order, decoded by threads ahead of time."""
    waiting: deque[Future[_Row]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for member in members:
            waiting.append(pool.submit(read, member))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(reader: PartReader, decoder: Decoder, embedder: Embedder, member: Member) -> _Row:
    row = _Row(member, size=member.size, problem=member.problem)
    try:
        if row.problem:
            return row
        data = reader.read(member)
        row.size = len(data)
        row.sha256 = hashlib.sha256(data).hexdigest()
        header = read_header(data)
        if max(header.width, header.height) > LONGEST_SIDE:
            raise ImageError(f"its header says {header.width} x {header.height} pixels")
        row.header = header
        image = decoder.decode(member.key, data, header)
        row.prepared, row.contrast = embedder.prepare(image), _contrast(image)
    except ImageError as error:
        row.problem = str(error) or "unreadable"
    return row


def _contrast(image) -> float:
    small = image.reduce(max(1, min(image.size) // 64)) if min(image.size) >= 128 else image
    return float(np.asarray(small.convert("L"), np.float32).std(dtype=np.float64))


def _stored(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors, np.float32).astype(np.float16)


def _write(
    rows: list[_Row], vectors: list[np.ndarray], dim: int, columns: list[str], out: Path
) -> None:
    values = {
        "key": [row.member.key for row in rows],
        "member": [row.member.member for row in rows],
        "url": [row.member.url for row in rows],
        "caption": [row.member.caption for row in rows],
        "sha256": [row.sha256 for row in rows],
        "width": [row.header and row.header.width for row in rows],
        "height": [row.header and row.header.height for row in rows],
        "format": [row.header and row.header.format for row in rows],
        "bytes": [row.size for row in rows],
        "offset": [row.member.offset for row in rows],
        "problem": [row.problem for row in rows],
        "contrast": [row.contrast for row in rows],
        "vector": [row.vector for row in rows],
    }
    schema = COLUMNS
    for column in columns:
        schema = schema.append(pa.field(score_column(column), pa.float64()))
        values[score_column(column)] = [_number(row.member.columns.get(column)) for row in rows]
    pq.write_table(pa.table(values, schema), out / FACTS, compression="zstd")
    np.save(out / VECTORS, np.concatenate([np.empty((0, dim), np.float16), *vectors]))


def _number(value: object) -> float | None:
    try:
        return None if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
