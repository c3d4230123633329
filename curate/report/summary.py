"""The console summary of a finished run: what became of the images, at what cost, and where."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from curate.dedup.hashes import METHODS
from curate.dedup.looks import STEP
from curate.export.selection_list import list_files
from curate.filters.decisions import DECISIONS
from curate.report.balance import balance_table, describe_balance
from curate.report.false_copies import advice, false_copies
from curate.report.seeds import seed_table
from curate.report.tables import read_funnel
from curate.selection.top_up import describe_top_up
from shared.progress import WIDTH, count, duration, printable, rate
from shared.storage.files import read_optional

BAR = 40
PROBLEMS = 10  # lines; the rest is in funnel.json
SOURCES = {
    "calibrated": "calibrated by this run",
    "embedder": "declared with the embedder",
    "pipeline": "set in the pipeline",
    "kept": "kept from when the result was first made",
    "target": "solved for retrieve.target",
}


def summary(out: Path, *, colour: bool = False, place: str = "") -> str:
    """Return the summary of the run in `out`: lines of at most 100 columns, a newline last.

    With `colour` it holds ANSI styles, and says nothing more. `place` is what `out` is called, if
    something else. LvdError where no run has finished.
    """
    funnel = read_funnel(out)
    run, timings = read_optional(out / "run.json"), read_optional(out / "timings.json")
    text = io.StringIO()
    console = Console(
        file=text,
        width=WIDTH,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        emoji=False,
        markup=False,
    )
    for block in _blocks(out, place or str(out), funnel, run, timings):
        console.print(block)
    lines = text.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _blocks(
    out: Path, place: str, funnel: dict[str, Any], run: dict[str, Any], timings: dict[str, Any]
) -> Iterable[RenderableType]:
    if said := advice(funnel):
        yield Text(f"{said}:", style="bold red")
        yield Text(f"{false_copies(funnel)}\n", style="red")
    yield Text(headline(funnel, run), style="bold")
    yield ""
    yield _indented(_funnel_table(funnel))
    if seeds := funnel.get("seeds"):
        yield Text("\nSeeds", style="bold")
        yield _indented(seed_table(seeds))
    if balance := funnel.get("balance"):
        yield Text("\nBalance", style="bold")
        yield _indented(Text(describe_balance(balance)))
        yield _indented(balance_table(balance))
    if told := funnel.get("top_up"):
        yield Text("\nTop-up", style="bold")
        yield _indented(Text(describe_top_up(told)))
    if timings.get("stages"):
        yield Text("\nTime", style="bold")
        yield _indented(_time_table(timings))
    yield Text("\nThresholds and groups", style="bold")
    yield _indented(_threshold_table(funnel, timings))
    if said := false_copies(funnel):
        yield _indented(Text(said))
    if problems := funnel.get("problems", []):
        yield Text(f"\nProblems ({len(problems):,})", style="bold yellow")
        for problem in problems[:PROBLEMS]:
            yield _indented(Text(printable(problem)))
        if len(problems) > PROBLEMS:
            more = f"and {len(problems) - PROBLEMS:,} more, in reports/funnel.json"
            yield _indented(Text(more))
    yield Text(f"\nIn {printable(place)}", style="bold")
    yield _indented(_file_table(out))


def headline(funnel: dict[str, Any], run: dict[str, Any]) -> str:
    """Return one line: how many images of which crawl were kept, for which seed."""
    crawl, seed, embedder = (run.get(name) for name in ("crawl", "seed", "embedder"))
    kept = f"{funnel['decisions']['kept']:,} of {funnel['images']:,} images kept"
    named = [
        f"{word} {'/'.join(value.rstrip('/').split('/')[-2:])}"
        for word, value in (("crawl", crawl), ("seed", seed), ("embedder", embedder))
        if isinstance(value, str)
    ]
    return printable(f"{kept} · {', '.join(named)}" if named else kept)


def _funnel_table(funnel: dict[str, Any]) -> Table:
    images = funnel["images"]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("decision", no_wrap=True)
    for name in ("images", "share", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_row("crawled", f"{images:,}", "", f"{images:,}", _bar(images, images), style="bold")
    left = images
    for name in DECISIONS[:-1]:
        count = funnel["decisions"][name]
        left -= count
        style = "red" if count else "dim"
        table.add_row(
            Text(name, style=style),
            f"{count:,}",
            share(count, images),
            f"{left:,}",
            Text(_bar(count, images), style=style),
        )
    kept = funnel["decisions"]["kept"]
    bar = _bar(kept, images)
    table.add_row("kept", f"{kept:,}", share(kept, images), f"{left:,}", bar, style="bold green")
    return table


def share(count: int, images: int) -> str:
    """Return a percentage that never rounds something to nothing, or a part to all."""
    if not images or not count:
        return "0 %" if images else ""
    percent = 100 * count / images
    if percent < 0.05:
        return "< 0.1 %"
    return "> 99.9 %" if 99.95 <= percent < 100 else f"{percent:.1f} %"


def _bar(count: int, images: int) -> str:
    eighths = round(8 * BAR * count / images) if images else 0
    eighths = max(eighths, 1 if count else 0)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def _time_table(timings: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    for _ in range(3):
        table.add_column(justify="right")
    for stage in timings["stages"]:
        name, images = printable(stage["name"]), stage.get("images", 0)
        counted = f"{images:,} images" if images else ""
        if stage.get("cached"):
            table.add_row(name, counted, "cached", "", style="dim")
        else:
            speed = rate(stage.get("worked", images), stage["seconds"]).replace("/s", " images/s")
            table.add_row(name, counted, duration(stage["seconds"]), speed)
    table.add_row("in all", "", duration(timings["seconds"]), "", style="bold")
    return table


def cosine_from(setting: dict[str, Any], reaches: str) -> str:
    """Return from which cosine on images are copies or relevant, of `thresholds` in `funnel.json`.

    Two drawn pictures may be copies from a higher one on.
    """
    drawn = f", drawn {reaches} {setting['drawn']:.6g}" if setting.get("drawn") else ""
    return f"cosine {reaches} {setting['value']:.6g}{drawn}"


def _threshold_table(funnel: dict[str, Any], timings: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, setting in funnel.get("thresholds", {}).items():
        if setting and setting.get("value") is not None:
            source = SOURCES.get(setting.get("source"), setting.get("source") or "")
            table.add_row(printable(name), cosine_from(setting, ">="), printable(source))
    groups = funnel.get("groups") or {}
    if groups:
        members = f"{groups['members']:,} images in {groups['count']:,} groups of copies"
        chains = groups.get("chains")  # of a run before chains were counted there are none
        table.add_row("groups", members, f"{chains:,} of them chains" if chains else "")
    if hashed := funnel.get("dedup_hash"):
        table.add_row("dedup hash", by_hash(hashed), f"of {hashed['hashed']:,} that have one")
        if hashed.get("lent") is not None:
            lent = f"{hashed['lent']:,} images not embedded"
            table.add_row("embed once", lent, "but lent the vector of the best of their hash")
    if looks := funnel.get("dedup_looks"):
        steps = [stage.get("steps", {}) for stage in timings.get("stages", [])]
        seconds = sum(each.get(STEP, 0.0) for each in steps)
        took = f", in {duration(seconds)}" if seconds else ""
        below = f"below the threshold, from {looks['floor']:.4f}{took}"
        table.add_row("dedup looks", by_look(looks), below)
    ignored = funnel.get("ignored") or {}
    if ignored.get("files"):
        count = f"{ignored['files']:,} files that are no images"
        table.add_row("ignored", count, printable("as " + ", ".join(ignored["examples"])))
    if removed := funnel.get("removed"):
        lists = printable(", ".join(sorted(removed["lists"])))
        table.add_row("removed", f"{removed['images']:,} images by lvd-curate remove", lists)
    recall = funnel.get("dedup_recall") or {}
    if recall.get("recall") is not None:
        against = f"{recall['pairs']:,} pairs by exact search of {recall['queries']:,} images"
        table.add_row("completeness", f"{recall['recall']:.4f}", against)
    for name, seed in (funnel.get("seeds") or {}).items():
        searched = seed.get("search_recall") or {}
        if searched.get("recall") is not None:
            against = f"{searched['pairs']:,} nearest by exact search of {searched['queries']:,}"
            row = printable(f"completeness of {name}")
            table.add_row(row, f"{searched['recall']:.4f}", against)
    return table


def by_hash(hashed: dict[str, Any]) -> str:
    """Return how many copies a pass by hashes found, of `dedup_hash` in `funnel.json`."""
    return f"{hashed['covered']:,} copies of the same {METHODS[hashed['method']].title}"


def by_look(looks: dict[str, Any]) -> str:
    """Return what looks below the threshold found, of `dedup_looks` in `funnel.json`."""
    unread = f", {looks['unreadable']:,} unreadable" if looks["unreadable"] else ""
    return f"{looks['confirmed']:,} of {looks['looked']:,} pairs are one picture{unread}"


def _file_table(out: Path) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    if list_files(out):
        table.add_row(
            "selection.parquet", "where the kept images lie: lvd-train run --select trains on them"
        )
    else:
        tars = sum(1 for _ in (out / "shards").glob("*.tar"))
        table.add_row("shards/", f"{count(tars, 'WebDataset shard')}, to train on")
    if (out / "reports" / "index.html").exists():
        table.add_row("reports/index.html", "pictures: open it in a browser")
    table.add_row("reports/images.parquet", "what became of every crawled image, and why")
    table.add_row("reports/*.parquet, funnel.json", "groups of copies, nearest seeds, all counts")
    return table


def _indented(block: RenderableType) -> Padding:
    return Padding(block, (0, 0, 0, 2))
