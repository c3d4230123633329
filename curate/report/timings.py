"""Writes the page of how long each stage of a run took, beside the report's page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate.report.summary import headline
from curate.report.tables import read_funnel
from shared.pages.page import render_page
from shared.progress import duration, rate
from shared.storage.files import read_json, read_optional, written_whole

TIMINGS = "timings.json"
TIMINGS_PAGE = "reports/timings.html"
TIMED = (TIMINGS, TIMINGS_PAGE)
"""The files of a result in which runs differ that are equal otherwise."""
QUERY = f"SELECT unnest(stages, max_depth := 2) FROM '{TIMINGS}'"
DOES = {
    "start Ray": "starts the workers",
    "embed": "reads, decodes and checks images, and computes their vectors; seeds and holdouts too",
    "calibrate": "makes edited copies of some images, and measures thresholds by them",
    "cluster": "puts similar images together, so that copies are looked for among neighbours",
    "dedup": "finds copies and groups them",
    "estimate": "looks at the pixels of some of the copies, and counts false ones",
    "holdout": "finds copies of evaluation images",
    "retrieve": "finds the seed images that are nearest to each image",
    "select": "decides what is kept",
    "export": "writes the shards, or the list",
    "embeddings": "writes the vectors of what is kept",
    "report": "writes the tables and draws the pages",
}
_TEMPLATE = Path(__file__).with_name("timings.html")


def write_timings_page(out: Path) -> None:
    """Write `reports/timings.html` of the finished run in `out`, from its `timings.json`."""
    timings, run = read_json(out / TIMINGS), read_optional(out / "run.json")
    page = render_page(
        _TEMPLATE,
        title=f"{duration(timings['seconds'])} in all",
        figures=[],
        run=headline(read_funnel(out), run),
        stages=list(_stages(timings)),
        query=QUERY,
    )
    with written_whole(out / TIMINGS_PAGE) as beside:
        beside.write_text(page, encoding="utf-8")


def _stages(timings: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Yield the rows of the table."""
    for stage in timings["stages"]:
        images, worked = stage.get("images", 0), stage.get("worked", stage.get("images", 0))
        counted = f"{images:,} images" if images else ""
        if stage.get("cached"):
            counted = f"{counted}, reused".removeprefix(", ")
        elif worked < images:
            counted = f"{worked:,} of {images:,} images, the others reused"
        does = "; ".join(filter(None, (DOES.get(stage["name"], ""), *_longest(stage))))
        yield {
            "name": stage["name"],
            "took": duration(stage["seconds"]),
            "rate": ""
            if stage.get("cached")
            else rate(worked, stage["seconds"]).removesuffix("/s"),
            "percent": f"{100 * stage['seconds'] / max(timings['seconds'], 1e-9):.2f}",
            "told": ": ".join(filter(None, (counted, does))),
        }


def _longest(stage: dict[str, Any]) -> Iterator[str]:
    """Yield what of a stage took at least a tenth of it, and how long, the longest first."""
    for step, seconds in sorted(stage.get("steps", {}).items(), key=lambda each: -each[1]):
        if seconds >= stage["seconds"] / 10:
            yield f"{step} {duration(seconds)}"
