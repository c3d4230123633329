"""Formats the loop's table as plain text of at most 100 columns."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table

from curate.loop.table import STEPS, Figures, LoopTable
from curate.report.summary import share
from shared.progress import WIDTH, duration, printable

ABREAST = 4
"""Rounds beside one another in the table of kinds."""
K = "k=20"
"""The k of the k-NN that stands in the table, where it was scored; all are in the files."""


def as_text(table: LoopTable) -> str:
    """Return the table as it stands in table.txt and on the terminal, a newline last."""
    text = io.StringIO()
    console = Console(
        file=text,
        width=WIDTH,
        color_system=None,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for block in _blocks(table):
        console.print(block)
    lines = text.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _blocks(table: LoopTable) -> Iterator[RenderableType]:
    count = len(table.rounds)
    names = [_short(name) for name in (table.crawl, table.seed)]
    rounds = f"{count} round{'s' if count > 1 else ''}"
    yield f"{rounds} on crawl {names[0]}, seed {names[1]}; recipe {printable(table.recipe)}\n"
    yield _indented(_round_table(table))
    if legend := list(_legend(table)):
        yield ""
        yield from (_indented(line) for line in legend)
    if any(figures.kinds for figures in table.rounds):
        for first in range(0, count, ABREAST):
            yield "\nKept of each kind"
            yield _indented(_kind_table(table.rounds[first : first + ABREAST], first + 1))
    if count > 2:
        yield "\nOverlap: images kept in both rounds / in either"
        yield _indented(_overlap_table(table.rounds))
    yield "\nTime"
    yield _indented(_time_table(table.rounds))


def _round_table(table: LoopTable) -> Table:
    sheet = _sheet("round")
    sheet.add_column("meaning by")
    headers = ["copies at", "relevant at", "kept", "", "overlap"]
    k = _k(table)
    for header in headers + ([f"k-NN, {k}"] if k else []):
        sheet.add_column(header, justify="right", no_wrap=True)
    if k and table.first_knn:
        by = _short(table.rounds[0].embedder)
        sheet.add_row("", by, *[""] * len(headers), _percent(table.first_knn.get(k)))
    for number, figures in enumerate(table.rounds, start=1):
        known = [figures.thresholds.get(stage) for stage in ("dedup", "retrieve")]
        cells = [
            str(number),
            _short(figures.embedder),
            *(f"{each['value']:.4f}" if each else "" for each in known),
            f"{figures.kept:,} of {figures.images:,}",
            share(figures.kept, figures.images),
            _percent(figures.overlap.get(number - 1)) if number > 1 else "",
        ]
        sheet.add_row(*cells, *([_percent(figures.knn.get(k))] if k else []))
    return sheet


def _legend(table: LoopTable) -> Iterator[str]:
    if len(table.rounds) > 1:
        yield "overlap: images kept in the round and in the one before it / in either"
    if _k(table):
        yield "k-NN: top-1 of the model that the round trained; above them, of the first embedder"


def _kind_table(rounds: Sequence[Figures], first: int) -> Table:
    sheet = _sheet("kind")
    sheet.add_column("crawled", justify="right")
    for number in range(first, first + len(rounds)):
        sheet.add_column(f"round {number}", justify="right")
        sheet.add_column("", justify="right")
    for kind in dict.fromkeys(kind for figures in rounds for kind in figures.kinds):
        counts = [figures.kinds.get(kind) for figures in rounds]
        crawled = next(of.crawled for of in counts if of)
        cells = [(f"{of.kept:,}", share(of.kept, of.crawled)) if of else ("", "") for of in counts]
        sheet.add_row(printable(kind), f"{crawled:,}", *(text for pair in cells for text in pair))
    return sheet


def _overlap_table(rounds: Sequence[Figures]) -> Table:
    sheet = _sheet("")
    for number in range(1, len(rounds)):
        sheet.add_column(f"round {number}", justify="right")
    for number, figures in enumerate(rounds[1:], start=2):
        cells = [_percent(figures.overlap[other]) for other in range(1, number)]
        sheet.add_row(f"round {number}", *cells)
    return sheet


def _time_table(rounds: Sequence[Figures]) -> Table:
    sheet = _sheet("")
    for header in (*STEPS, "in all"):
        sheet.add_column(header, justify="right")
    for number, figures in enumerate(rounds, start=1):
        took = [figures.seconds.get(step) for step in STEPS]
        cells = ["" if seconds is None else duration(seconds) for seconds in took]
        sheet.add_row(f"round {number}", *cells, duration(sum(figures.seconds.values())))
    return sheet


def _k(table: LoopTable) -> str:
    scored = [knn for knn in (table.first_knn, *(f.knn for f in table.rounds)) if knn]
    if not scored:
        return ""
    return K if K in scored[0] else next(iter(scored[0]))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _short(name: str) -> str:
    """Return a name, or the end of a path."""
    return printable("/".join(name.rstrip("/").split("/")[-2:]))


def _sheet(*left: str) -> Table:
    sheet = Table(box=None, padding=(0, 2, 0, 0))
    for header in left:
        sheet.add_column(header, no_wrap=True)
    return sheet


def _indented(block: RenderableType) -> Padding:
    return Padding(block, (0, 0, 0, 2))
