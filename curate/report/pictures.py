"""Draws the report of a finished run: one self-contained page of HTML, and pages of groups beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from curate.report.charts import Chart, balance_chart
from curate.report.cluster_map import cluster_map
from curate.report.contact_sheets import Sheet, Tile, tiles_of
from curate.report.copy_sheets import ON_PAGE, chosen_groups, nearest_to_threshold, page_of_groups
from curate.report.other_thresholds import copy_counts
from curate.report.page import Content, Section, Thumbs, page_of_copies, report_page
from curate.report.queries import queries
from curate.report.samples import brought_in, dropped_samples, kept_sample
from curate.report.settings import ReportSettings
from curate.report.sources import reasons, yields
from curate.report.tables import open_tables, read_funnel, rows, threshold
from curate.report.threshold_section import copies_section, relevance_section
from curate.report.thumbnails import ENLARGED_BYTES, ReadImage, thumbnails
from curate.report.verdict import verdict
from shared.storage.files import read_optional

PICTURE_BYTES = 10_000_000
"""Of the pictures of a page: as base64 a third more."""


def pictures(
    out: Path,
    read_image: ReadImage,
    read_seeds: Mapping[str, ReadImage] | None = None,
    *,
    timed: bool = True,
) -> Path:
    """Write `out/reports/index.html`, and `copies-*.html` beside it; return the page's path.

    Where it is `timed`, the page names one of timings, which `write_timings_page` writes.

    `read_image(key)` returns the bytes of a crawled image that was not kept, `read_seeds[name](key)`
    those of a seed's, and None where they are no longer to be had: then words stand in its place.
    The same run and the same images give the same bytes. LvdError where no run has finished.
    """
    funnel, run = read_funnel(out), read_optional(out / "run.json")
    reports = out / "reports"
    asked = ReportSettings().groups
    asked = funnel.get("settings", {}).get("report", {}).get("groups", asked)

    def thumbs_of(tiles: Iterable[Tile]) -> Thumbs:
        shown = list(tiles)
        limit = min(ENLARGED_BYTES, PICTURE_BYTES // max(1, len(shown)))
        return thumbnails(out, shown, read_image, read_seeds or {}, limit)

    with open_tables(out) as tables:
        [counted] = rows(tables, 'SELECT count(DISTINCT "group") AS groups FROM duplicates')
        groups = min(counted["groups"], asked)
        links = [
            (f"copies-{start // ON_PAGE + 1:03d}.html", f"{start + 1:,} to {end:,}")
            for start in range(0, groups, ON_PAGE)
            for end in [min(start + ON_PAGE, groups)]
        ]
        content = gather(tables, out, funnel, run, links, timed)
        shown = [each.sheet for each in content.thresholds]
        shown += [sheet for section in content.sections for sheet in section.sheets]
        thumbs = thumbs_of([*tiles_of(shown), *(place.tile for place in content.map)])
        index = reports / "index.html"
        index.write_text(report_page(funnel, run, content, thumbs), encoding="utf-8")
        for number in range(len(links)):
            sheet = page_of_groups(tables, number, min(ON_PAGE, groups - number * ON_PAGE))
            thumbs = thumbs_of(tiles_of([sheet]))
            page = page_of_copies(sheet, links, thumbs)
            (reports / f"{sheet.name}.html").write_text(page, encoding="utf-8")
    further = {href for href, _ in links}
    for path in reports.glob("copies-*.html"):
        if path.name not in further:  # of an earlier drawing
            path.unlink()
    return index


def gather(
    tables: duckdb.DuckDBPyConnection,
    out: Path,
    funnel: dict[str, Any],
    run: dict[str, Any],
    links: list[tuple[str, str]],
    timed: bool,
) -> Content:
    """Choose and count all that the page tells; `links` are the further pages."""
    relevance, dedup = threshold(funnel, "retrieve"), threshold(funnel, "dedup")
    asked = queries(out, relevance)
    found = [
        relevance_section(tables, funnel, run, asked["relevance"]),
        copies_section(tables, funnel, run, asked["copies"]),
    ]
    near = [nearest_to_threshold(tables, dedup), *chosen_groups(tables)]
    kept, brought = kept_sample(tables), brought_in(tables)
    balance: Chart | None = None
    if (path := out / "reports" / "balance.parquet").exists():
        before, after = (pq.read_table(path)[name].to_numpy() for name in ("images", "weight"))
        if before.any():
            balance = balance_chart(before, after)
    return Content(
        verdict=verdict(funnel, run, copy_counts(tables, dedup)),
        thresholds=[each for each in found if each is not None],
        sections=[
            Section(
                "groups",
                "Copies",
                _filled(near),
                "A group is an image that stands for others, and its copies.",
                asked["groups"],
                links,
            ),
            Section("samples", "Kept and dropped", _filled([kept, *dropped_samples(tables)])),
            Section("seeds", "Seeds", _filled([brought]), query=asked["seeds"]),
        ],
        map=cluster_map(tables, out),
        balance=balance,
        reasons=reasons(tables),
        yields=yields(tables),
        queries=asked,
        timed=timed,
    )


def _filled(sheets: list[Sheet]) -> list[Sheet]:
    return [sheet for sheet in sheets if sheet.strips]
