"""What a comparison of two runs is answered with: lines for a terminal, and a page of pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from curate.redraw import open_originals
from curate.report.contact_sheets import Strip, Tile
from curate.report.diff import Difference
from curate.report.strips_page import strips_page
from curate.report.thumbnails import ReadImage, thumbnails
from shared.progress import printable
from shared.storage.files import dumps, read_optional
from shared.storage.locks import scratch_folder
from shared.text_table import text_table

MATCHES = {
    "key": "have the same key and bytes in both",
    "content": "have the same bytes and another key",
    "changed": "have the same key and other bytes",
    "a": "are in the crawl of A only",
    "b": "are in the crawl of B only",
}
ABSENT = "no picture"
_SHOWN = 3
"""Examples of a move on the terminal."""


def diff_lines(found: Difference) -> Iterator[str]:
    """Yield the answer in lines: what was compared, what moved and why, and what was set otherwise."""
    a, b = found.outs
    yield printable(f"A  {a}  (crawl {found.crawls[0]})")
    yield printable(f"B  {b}  (crawl {found.crawls[1]})")
    if found.crawls[0] != found.crawls[1]:
        yield "These are runs on different crawls: images are matched by their bytes."
    yield ""
    yield from (f"{count:,} images {MATCHES[how]}" for how, count in found.matched.items() if count)
    yield kept_line(found)
    yield ""
    if not found.moves:
        yield "About every image both decided the same."
    else:
        examples = by_move(found.examples)
        cells = [[n, was or "absent", is_now or "absent"] for was, is_now, n in found.moves]
        head, *lines = text_table(["images", "by A", "by B"], cells)
        yield head
        for line, (was, is_now, _) in zip(lines, found.moves, strict=True):
            yield line
            for row in examples[was, is_now][:_SHOWN]:
                yield printable(f"          {row['key_b'] or row['key_a']}: {why(row)}")
    if found.settings:
        yield ""
        yield from text_table(["set otherwise", "A", "B"], settings_rows(found))


def kept_line(found: Difference) -> str:
    """Return the sentence about what was kept."""
    kept = found.kept
    return f"{kept['both']:,} kept by both, {kept['a']:,} by A only, {kept['b']:,} by B only"


def why(row: Mapping[str, Any]) -> str:
    """Return the reason of the run that did not keep an image, or of both."""
    told = [
        (name, row[f"reason_{name}"])
        for name in "ab"
        if row[f"decision_{name}"] not in (None, "kept")
    ]
    said = [f"{name.upper()}: {reason or 'no reason is recorded'}" for name, reason in told]
    return "; ".join(said) or "in one crawl only"


def settings_rows(found: Difference) -> list[list[str]]:
    """Return what was set otherwise, in words."""
    return [
        [name, *("" if value is None else _short(value) for value in (a, b))]
        for name, a, b in found.settings
    ]


def by_move(
    examples: Iterable[dict[str, Any]],
) -> dict[tuple[str | None, str | None], list[dict[str, Any]]]:
    """Return the examples by the decisions of both."""
    moved = defaultdict(list)
    for row in examples:
        moved[row["decision_a"], row["decision_b"]].append(row)
    return moved


def diff_page(found: Difference, work: Path) -> str:
    """Return the page: a strip of pictures for each kind of move, with the reasons under them."""
    examples = by_move(found.examples)
    strips = [
        Strip(
            f"{count:,}: {_said(was, 'A')}, {_said(is_now, 'B')}"
            + (f"; {len(shown):,} shown" if len(shown) < count else ""),
            tuple(map(_tile, shown)),
        )
        for was, is_now, count in found.moves
        for shown in [examples[was, is_now]]
    ]
    tiles = [tile for strip in strips for tile in strip.tiles]
    thumbs: dict[tuple[str | None, str], bytes] = {}
    with ExitStack() as stack:
        for place, out in enumerate(found.outs):
            name = "ab"[place]
            read = _reader(stack, out, work)
            own = [tile for tile in tiles if tile.seed == name]
            thumbs |= thumbnails(out, own, read, {name: read})
    figures = [
        (f"{found.kept['both']:,}", "kept by both"),
        (f"{found.kept['a']:,}", "by A only"),
        (f"{found.kept['b']:,}", "by B only"),
    ]
    remarks = [
        f"A: {found.outs[0]} (crawl {found.crawls[0]})",
        f"B: {found.outs[1]} (crawl {found.crawls[1]})",
    ]
    remarks += [f"{n:,} images {MATCHES[how]}." for how, n in found.matched.items() if n]
    table = [["set otherwise", "A", "B"], *settings_rows(found)] if found.settings else []
    title = "What two runs decided differently"
    return strips_page(title, figures, remarks, table, strips, thumbs)


def _said(decision: str | None, by: str) -> str:
    return f"not in {by}" if decision is None else f"{decision} by {by}"


def _reader(stack: ExitStack, out: Path, work: Path) -> ReadImage:
    about = read_optional(out / "run.json").get("datasets", {}).get("crawl")
    read = None
    if about is not None and work.exists():
        scratch = stack.enter_context(scratch_folder(work / "scratch"))
        read = open_originals(stack, "crawl", about, work, scratch)
    return read or (lambda key: None)


def _tile(row: dict[str, Any]) -> Tile:
    """Return the tile of an image: of the run that kept it, else of any that has it."""
    name = next(
        (one for one in "ba" if row[f"decision_{one}"] == "kept"), "b" if row["key_b"] else "a"
    )
    unsafe = "unsafe" in (row["decision_a"], row["decision_b"])
    key = row[f"key_{name}"]
    return Tile(
        key,
        why(row),
        f"{key} · {why(row)}",
        row[f"shard_{name}"],
        row[f"output_{name}"],
        seed=name,
        hidden=unsafe,
        absent="unsafe: not shown" if unsafe else ABSENT,
    )


def _short(value: Any) -> str:
    said = value if isinstance(value, str) else dumps(value).strip()
    said = " ".join(said.split())
    return said if len(said) <= 60 else said[:59] + "…"
