"""`lvd-curate query`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.cli.answer_files import check_answers, written_answer
from curate.cli.options import folder
from shared.commands import LocalFolder
from shared.errors import LvdError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN = 100
"""Rows of a table on the terminal."""


def _list_questions(context: click.Context, _: click.Parameter, is_asked: bool) -> None:
    from curate.report.named_queries import QUERIES

    if is_asked:
        click.echo("\n\n".join(f"{n}: {each.about}\n{each.sql}" for n, each in QUERIES.items()))
        context.exit()


@click.command()
@click.argument("out", metavar="OUT", type=LocalFolder())
@click.argument("sql", metavar="[SQL]", required=False)
@click.option("--named", metavar="NAME", help="Ask a question that has a name: see --list.")
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_questions,
    help="List the names, with their SQL; OUT need not be said.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["table", "csv", "parquet"]),
    default="table",
    show_default=True,
    help=f"table: aligned, the first {SHOWN} rows. csv and parquet: all of them.",
)
@folder("--to", "file", metavar="FILE", help="Write there, which parquet needs, and not to stdout.")
def query(out: Path, sql: str | None, named: str | None, kind: str, file: Path | None) -> None:
    """Ask the reports of a finished run in SQL.

    Tables: images, copies (or duplicates), retrieval, groups, and what else is in OUT/reports as
    Parquet. One SELECT of DuckDB's, which reaches these tables and nothing else: no file, no network.

    \b
    lvd-curate query runs/curate/sample --named kept-by-source
    lvd-curate query runs/curate/sample "select key from images where decision = 'corrupt'"
    lvd-curate query runs/curate/sample --named reasons --format csv --to runs/reasons.csv
    """
    from curate.report.named_queries import QUERIES
    from curate.report.query import asked

    if (sql is None) == (named is None):
        raise LvdError("query: say SQL, or --named NAME (--list lists them)")
    if named is not None and named not in QUERIES:
        raise LvdError(
            f"--named {named}: no such question{nearest(named, QUERIES)}: there are "
            f"{', '.join(QUERIES)}"
        )
    if kind == "parquet" and file is None:
        raise LvdError("--format parquet: say --to FILE")
    check_answers(to=file)
    write = {"table": _write_table, "csv": _write_csv, "parquet": _write_parquet}[kind]
    with (
        asked(out, QUERIES[named].sql if named is not None else str(sql)) as answer,
        written_answer(file) if file is not None else nullcontext(None) as path,
    ):
        write(answer, path)


def _write_table(answer: pa.RecordBatchReader, path: Path | None) -> None:
    from shared.text_table import text_table

    rows = (tuple(row.values()) for batch in answer for row in batch.to_pylist())
    shown = list(islice(rows, SHOWN))
    lines = text_table(answer.schema.names, shown)
    if next(rows, None) is not None:
        lines.append("... and more: all of them with --format csv")
    text = "\n".join(lines) + "\n"
    if path is None:
        click.echo(text, nl=False)
    else:
        path.write_text(text, encoding="utf-8")


def _write_csv(answer: pa.RecordBatchReader, path: Path | None) -> None:
    import csv

    with nullcontext(sys.stdout) if path is None else path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(answer.schema.names)
        for batch in answer:
            writer.writerows(tuple(row.values()) for row in batch.to_pylist())


def _write_parquet(answer: pa.RecordBatchReader, path: Path | None) -> None:
    import pyarrow.parquet as pq

    assert path is not None  # asked for above
    with pq.ParquetWriter(path, answer.schema, compression="zstd") as file:
        for batch in answer:
            file.write_batch(batch)
