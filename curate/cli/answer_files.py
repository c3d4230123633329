"""The files that an answer goes into besides the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.cli.options import folder
from shared.errors import LvdError

if TYPE_CHECKING:
    import pyarrow as pa

parquet_option = folder("--parquet", metavar="FILE", help="Write the whole answer as a table, too.")
page_option = folder(
    "--page",
    metavar="FILE",
    help="Write a page of pictures too: one HTML file that needs no other.",
)


def check_answers(**files: Path | None) -> None:
    """Raise LvdError, before anything is computed, where a file cannot be written; by option."""
    from shared.storage.places import check_writable

    for name, path in files.items():
        if path is not None and path.is_dir():
            raise LvdError(f"--{name} {path} is a folder: name a file")
        if path is not None:
            check_writable(path.parent, f"--{name}")


@contextmanager
def written_answer(path: Path) -> Iterator[Path]:
    """Yield where to write what becomes the file `path`, whole or not at all."""
    from shared.storage.files import written_whole

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as beside:
            yield beside
    except OSError as error:
        raise LvdError(f"{path}: {error.strerror or error}: name another file") from error
    click.echo(f"written: {path}", err=True)


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write batches of rows as one Parquet file, a batch of them in memory at a time."""
    import pyarrow.parquet as pq

    with (
        written_answer(path) as beside,
        pq.ParquetWriter(beside, schema, compression="zstd") as file,
    ):
        for batch in batches:
            file.write_batch(batch.cast(schema))


def write_text(path: Path, text: str) -> None:
    """Write a page."""
    with written_answer(path) as beside:
        beside.write_text(text, encoding="utf-8")
