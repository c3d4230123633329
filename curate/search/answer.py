"""What a search is answered with: lines for a terminal, and a page of pictures."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import pyarrow as pa

from curate.redraw import open_originals
from curate.report.contact_sheets import Strip, Tile
from curate.report.strips_page import strips_page
from curate.report.thumbnails import thumbnails
from curate.search.search import Queries
from curate.search.stored import StoredCrawl
from shared.storage.locks import scratch_folder
from shared.text_table import text_table

ABSENT = "no picture"
_QUERY = "query"
"""What the tiles call the pictures that are searched for."""


def answer_lines(found: pa.Table, several: bool) -> list[str]:
    """Return a line for each image that was found; with `several` queries each names its own."""
    rows = found.to_pylist()
    names = [*(["query"] if several else []), "rank", "cosine", "decision", "key", "why"]
    cells = [
        [
            *([row["query"]] if several else []),
            *(row["rank"], row["similarity"], row["decision"], row["key"], _why(row)),
        ]
        for row in rows
    ]
    return text_table(names, cells) if rows else ["no image was found"]


def answer_page(stored: StoredCrawl, queries: Queries, found: pa.Table) -> str:
    """Return the page: a strip of pictures for each query, the picture that was asked for first."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in found.to_pylist():
        rows[row["query"]].append(row)
    pictures = {str(path): path for path in queries.files}
    strips = [
        Strip(
            f"Nearest to {name}",
            (
                *([Tile(name, "searched for", seed=_QUERY, mark="reference")] if pictures else []),
                *map(_tile, rows[name]),
            ),
        )
        for name in dict.fromkeys(queries.names)
    ]
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(stored.work / "scratch"))
        about = stored.run["datasets"]["crawl"]
        read = open_originals(stack, "crawl", about, stored.work, scratch)
        tiles = [tile for strip in strips for tile in strip.tiles]
        thumbs = thumbnails(
            stored.out,
            tiles,
            read or (lambda key: None),
            {_QUERY: lambda name: pictures[name].read_bytes()},
        )
    figures = [
        (f"{len(stored.collection):,}", "crawled images"),
        (stored.embedder_name, "embedder"),
        (f"{len(found):,}", "found"),
    ]
    said = "Under each picture its cosine with what was searched for, and what became of it."
    return strips_page(f"Nearest in {stored.out}", figures, [said], [], strips, thumbs)


def _tile(row: dict[str, Any]) -> Tile:
    unsafe = row["decision"] == "unsafe"
    return Tile(
        row["key"],
        f"{row['similarity']:.3f} · {row['decision']}",
        " · ".join(filter(None, [row["key"], row["decision"], row["reason"], row["url"]])),
        row["output_shard"],
        row["output_key"],
        hidden=unsafe,
        absent="unsafe: not shown" if unsafe else ABSENT,
    )


def _why(row: dict[str, Any]) -> str:
    if row["decision"] == "kept":
        return f"as {row['output_shard']}/{row['output_key']}"
    return str(row["reason"])
