"""`lvd-curate diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.cli.answer_files import (
    check_answers,
    page_option,
    parquet_option,
    write_batches,
    write_text,
)
from curate.cli.options import work_option
from shared.commands import LocalFolder

if TYPE_CHECKING:
    import pyarrow as pa


@click.command()
@click.argument("a", metavar="A", type=LocalFolder())
@click.argument("b", metavar="B", type=LocalFolder())
@parquet_option
@page_option
@work_option("For --page: the --work of the runs, which knows where the images are.")
def diff(a: Path, b: Path, parquet: Path | None, page: Path | None, work: Path) -> None:
    """Say what two finished runs kept differently, and why.

    Images are the same where key and bytes are, then by their bytes, then by their keys, so that A and
    B may be of different crawls. Every change of decision is counted, with some reasons, and so are
    the settings that differ. The exit status is 0 whatever is found.

    \b
    lvd-curate run --pipeline sample --set dedup.threshold=0.95 --out runs/curate/stricter
    lvd-curate diff runs/curate/sample runs/curate/stricter --page runs/diff.html
    """
    from curate.report.diff import SCHEMA, diff
    from curate.search.diff_answer import diff_lines, diff_page

    check_answers(parquet=parquet, page=page)

    def write(batches: pa.RecordBatchReader) -> None:
        if parquet is not None:
            write_batches(parquet, SCHEMA, batches)

    found = diff(a, b, write if parquet is not None else None)
    if page is not None:
        write_text(page, diff_page(found, work.absolute()))
    for line in diff_lines(found):
        click.echo(line)
