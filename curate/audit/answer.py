"""What an audit leaves: a table, a picture of pairs, and an answer in two lines."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.audit.audit import Audited
from curate.catalogue.originals import Originals
from curate.report.contact_sheets import COLUMNS, Sheet, Strip, Tile
from curate.report.sheet_png import sheet_png
from curate.report.stage import read_by_key
from curate.report.summary import SOURCES
from curate.report.thumbnails import thumbnails
from curate.written_cosine import rounded_down

TABLE, PICTURE = "audit.parquet", "audit.png"
ABSENT = "cannot be read any more"
_PAIRS = COLUMNS
_OTHER = "b"
"""What the tiles call the second dataset."""


def write_answer(found: Audited, embedder: str, out: Path, scratch: Path) -> list[str]:
    """Write `audit.parquet`, and `audit.png` where there are pairs; return the two lines."""
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(found.pairs, out / TABLE, compression="zstd")
    (out / PICTURE).unlink(missing_ok=True)
    threshold = found.threshold
    source = SOURCES.get(threshold.source, threshold.source)
    by = f"cosine >= {threshold.value:.6g} by {embedder}, {source}"
    if not len(found.pairs):
        return [_count(found), f"{by}; the empty table is {out / TABLE}"]
    with ExitStack() as stack:
        read, read_other = (
            read_by_key(
                stack.enter_context(Originals(each.collection, each.parts, scratch)),
                each.collection,
            )
            for each in found.datasets
        )
        sheet = pairs_sheet(found)
        tiles = [tile for strip in sheet.strips for tile in strip.tiles]
        drawn = sheet_png(sheet, thumbnails(out, tiles, read, {_OTHER: read_other}))
    (out / PICTURE).write_bytes(drawn)
    return [
        _count(found),
        f"{by}; every pair is in {out / TABLE}, some are drawn in {out / PICTURE}",
    ]


def _count(found: Audited) -> str:
    first, second = found.datasets
    images = [len(each.collection) for each in found.datasets]
    copied = [pc.count_distinct(found.pairs[key]).as_py() for key in ("key_a", "key_b")]
    exact = pc.sum(pc.equal(found.pairs["method"], "exact")).as_py() or 0
    return (
        f"{copied[0]:,} of the {images[0]:,} images of {first.name} are copies of {copied[1]:,} of "
        f"the {images[1]:,} of {second.name}; {exact:,} of {len(found.pairs):,} pairs are the same "
        "bytes"
    )


def pairs_sheet(found: Audited) -> Sheet:
    """Return the sheet of some pairs: the doubtful ones first."""
    rows = sorted(found.pairs.to_pylist(), key=lambda row: row["similarity"])
    near = [row for row in rows if row["method"] == "near"]
    exact = [row for row in rows if row["method"] == "exact"]
    most = near[_PAIRS:][-_PAIRS:][::-1]
    strips = [
        ("The least similar", near[:_PAIRS]),
        ("The most similar that are not the same bytes", most),
        ("The same bytes", exact[:_PAIRS]),
    ]
    first, second = found.datasets
    return Sheet(
        "audit",
        f"Copies between {first.name} and {second.name}",
        "In pairs, the former's framed. If the least similar are none, raise --threshold.",
        tuple(Strip(heading, _tiles(some)) for heading, some in strips if some),
        pairs=True,
    )


def _tiles(rows: list[dict[str, Any]]) -> tuple[Tile, ...]:
    tiles: list[Tile] = []
    for row in rows:
        said = "exact" if row["method"] == "exact" else f"cosine {rounded_down(row['similarity'])}"
        tiles += [
            Tile(row["key_a"], "", mark="reference", absent=ABSENT),
            Tile(row["key_b"], said, seed=_OTHER, absent=ABSENT),
        ]
    return tuple(tiles)
