"""Draws the report of a finished run: PNGs, and one self-contained page of HTML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from curate.report.charts import (
    balance_chart,
    copy_bins,
    funnel_chart,
    histogram_chart,
    similarity_bins,
)
from curate.report.contact_sheets import contact_sheets
from curate.report.page import report_page
from curate.report.sheet_png import sheet_png
from curate.report.tables import open_tables, read_funnel, threshold
from curate.report.thumbnails import ReadImage, thumbnails
from shared.storage import read_optional

PICTURES = (
    "funnel",
    "balance",
    "kept",
    "similarities",
    "threshold",
    "retrieval",
    "copy_similarities",
    "largest_groups",
    "borderline_copies",
    "rejects",
)


def pictures(
    out: Path, read_image: ReadImage, read_seeds: Mapping[str, ReadImage] | None = None
) -> Path:
    """Write `out/reports/*.png` and `out/reports/index.html`, and return the page's path.

    `read_image(key)` returns the bytes of a crawled image that was not kept, `read_seeds[name](key)`
    those of a seed's, and None where they are no longer to be had: then words stand in its place.
    The same run and the same images give the same bytes. LvdError where no run has finished.
    """
    funnel, run = read_funnel(out), read_optional(out / "run.json")
    relevance, dedup = threshold(funnel, "retrieve"), threshold(funnel, "dedup")
    with open_tables(out) as tables:
        sheets = contact_sheets(tables, relevance, dedup)
        similarities, copies = similarity_bins(tables, relevance), copy_bins(tables, dedup)
    tiles = [tile for sheet in sheets for strip in sheet.strips for tile in strip.tiles]
    thumbs = thumbnails(out, tiles, read_image, read_seeds or {})

    charts = {"funnel": funnel_chart(funnel)}
    if (path := out / "reports" / "balance.parquet").exists():
        before, after = (pq.read_table(path)[name].to_numpy() for name in ("images", "weight"))
        if before.any():
            charts["balance"] = balance_chart(before, after)
    if similarities:
        label = "cosine with the nearest seed image"
        charts["similarities"] = histogram_chart(similarities, relevance, label)
    if copies:
        label = "cosine of a near copy with its representative"
        charts["copy_similarities"] = histogram_chart(copies, dedup, label, log=True)
    drawn = charts | {sheet.name: sheet_png(sheet, thumbs) for sheet in sheets}

    reports = out / "reports"
    for name in PICTURES:
        path = reports / f"{name}.png"
        if name in drawn:
            path.write_bytes(drawn[name])
        else:  # of the run that was here before
            path.unlink(missing_ok=True)
    index = reports / "index.html"
    index.write_text(report_page(funnel, run, charts, sheets, thumbs), encoding="utf-8")
    return index
