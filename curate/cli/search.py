"""`lvd-curate search`."""

from __future__ import annotations

from pathlib import Path

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


def _decisions(context: click.Context, option: click.Parameter, incomplete: str) -> list[str]:
    from curate.filters.decisions import DECISIONS

    return [name for name in DECISIONS if name.startswith(incomplete)]


@click.command()
@click.argument("out", metavar="OUT", type=LocalFolder())
@click.argument("images", metavar="[IMAGE]...", nargs=-1, type=LocalFolder())
@click.option(
    "--text",
    "texts",
    multiple=True,
    help="Search by words, where OUT judges meaning by an embedder of kind open_clip. Repeatable.",
)
@click.option("--key", "keys", multiple=True, help="Search by a crawled image. Repeatable.")
@click.option(
    "--by",
    type=click.Choice(["meaning", "copies"]),
    default="meaning",
    show_default=True,
    help="Which of OUT's embedders says what is near.",
)
@click.option(
    "--top", type=click.IntRange(1, 1_000), default=10, show_default=True, help="Images for each."
)
@click.option(
    "--decision",
    "decisions",
    multiple=True,
    metavar="NAME",
    shell_complete=_decisions,
    help="Only images of which this became, such as kept. Repeatable; by default all that have a "
    "vector.",
)
@parquet_option
@page_option
@work_option("The --work of the run: it holds the vectors.")
def search(
    out: Path,
    images: tuple[Path, ...],
    texts: tuple[str, ...],
    keys: tuple[str, ...],
    by: str,
    top: int,
    decisions: tuple[str, ...],
    parquet: Path | None,
    page: Path | None,
    work: Path,
) -> None:
    """Find the crawled images that are nearest to a picture, to words, or to one of themselves.

    Among the vectors that the run of OUT stored: nothing of the crawl is embedded again. Each is told
    with its cosine and what became of it.

    \b
    lvd-curate search runs/curate/sample --key 00000/i00073 --page runs/nearest.html
    lvd-curate search runs/curate/sample photo.jpg --by copies
    lvd-curate search runs/curate/mine --text 'a red car' --decision irrelevant
    """
    from curate.filters.decisions import DECISIONS
    from curate.search.answer import answer_lines, answer_page
    from curate.search.search import of_keys, of_pictures, of_texts, search
    from curate.search.stored import open_stored
    from shared.errors import LvdError, nearest

    if unknown := set(decisions) - set(DECISIONS):
        name = min(unknown)
        raise LvdError(
            f"--decision {name}: no such decision{nearest(name, DECISIONS)}: there are "
            f"{', '.join(DECISIONS)}"
        )
    if sum(map(bool, (images, texts, keys))) != 1:
        raise LvdError("search: name pictures, or say --text or --key: one of the three")
    if texts and by == "copies":
        raise LvdError("--text is for --by meaning: copies are found by pictures")
    check_answers(parquet=parquet, page=page)
    stored = open_stored(out, work.absolute(), "retrieve" if by == "meaning" else "dedup")
    if images:
        queries = of_pictures(stored, images)
    else:
        queries = of_texts(stored, texts) if texts else of_keys(stored, keys)
    found = search(stored, queries, top, decisions)
    if parquet is not None:
        write_batches(parquet, found.schema, found.to_batches())
    if page is not None:
        write_text(page, answer_page(stored, queries, found))
    for line in answer_lines(found, len(queries.names) > 1):
        click.echo(line)
