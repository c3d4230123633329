"""Writes the report's page of a run, and the further pages of its groups of copies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curate.filters.decisions import DECISIONS
from curate.report.balance import describe_balance, describe_levels
from curate.report.charts import Chart
from curate.report.cluster_map import Place
from curate.report.contact_sheets import Sheet
from curate.report.summary import SOURCES, by_look, cosine_from, headline, share
from curate.report.threshold_section import ThresholdSection
from curate.selection.top_up import describe_top_up
from shared.pages.charts import LEFT, RIGHT
from shared.pages.page import ENLARGE, render_page
from shared.pages.verdicts import Verdict

Thumbs = Mapping[tuple[str | None, str], bytes]
"""Pictures of tiles by `(seed, key)`: JPEGs, or PNGs of very small ones."""
MEANS = {
    "corrupt": "the file could not be read, or its bytes are not a picture that can be decoded",
    "unsafe": "a filter or a list forbids it",
    "low_quality": "too small, too flat, too long, or below what a filter asks for",
    "holdout": "a copy of an evaluation image, or of one that is",
    "duplicate": "a copy of another crawled image, which stands for it",
    "irrelevant": "no seed image is similar enough to it",
    "over_budget": "relevant, and more than a budget has room for",
    "kept": "in the shards, or on the list, to train on",
}
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """A heading of the page and the contact sheets under it."""

    id: str
    title: str
    sheets: list[Sheet]
    note: str = ""
    query: str = ""
    links: list[tuple[str, str]] = field(default_factory=list)
    """Further pages: where, and what they are called."""


@dataclass(frozen=True)
class Content:
    """All that a page tells, chosen and counted."""

    verdict: Verdict
    thresholds: list[ThresholdSection]
    sections: list[Section]
    map: list[Place]
    balance: Chart | None
    reasons: list[dict[str, Any]]
    yields: Mapping[str, list[dict[str, Any]]]
    queries: Mapping[str, str]
    timed: bool
    """Whether there is a page of timings."""


def report_page(
    funnel: dict[str, Any], run: dict[str, Any], content: Content, thumbs: Thumbs
) -> str:
    """Return the whole page."""
    return render_page(
        _HERE / "report.html",
        script=(_HERE / "report.js").read_text(encoding="utf-8") + _pictures_script(),
        title=headline(funnel, run),
        figures=[],
        verdict=content.verdict,
        contents=list(_contents(content, funnel)),
        funnel=list(_funnel(funnel)),
        reasons=[(row["decision"], row["kind"], f"{row['images']:,}") for row in content.reasons],
        sliders=content.thresholds,
        sections=[each for each in content.sections if each.sheets],
        map=content.map,
        wide=max((place.column for place in content.map), default=0) + 1,
        balance=_balance(funnel, content.balance),
        yields={name: list(map(_yield, rows)) for name, rows in content.yields.items()},
        queries=content.queries,
        timed=content.timed,
        thumbs=thumbs,
        left=LEFT,
        right=RIGHT,
        settings=list(_settings(funnel)),
        details=[
            (name, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).split("\n"))
            for name in ("problems", "settings", "versions")
            if (value := funnel.get(name))
        ],
    )


def page_of_copies(sheet: Sheet, links: Sequence[tuple[str, str]], thumbs: Thumbs) -> str:
    """Return a further page of groups; `links` are all of these."""
    return render_page(
        _HERE / "groups.html",
        script=_pictures_script(),
        title=sheet.title,
        figures=[],
        sheet=sheet,
        links=links,
        own=f"{sheet.name}.html",
        thumbs=thumbs,
        left=LEFT,
        right=RIGHT,
    )


def _pictures_script() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in (ENLARGE, _HERE / "labels.js"))


def _contents(content: Content, funnel: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "verdict", "Verdict"
    yield "funnel", "Decisions"
    for each in content.thresholds:
        yield f"{each.name}-threshold", each.short
    for section in content.sections:
        if section.sheets:
            yield section.id, section.title
    if content.map:
        yield "clusters", "Clusters"
    if _balance(funnel, None):
        yield "balance", "Balance"
    if content.yields:
        yield "sources", "Sources"
    yield "settings", "Settings"


def _funnel(funnel: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the decisions that something was decided by, `kept` always."""
    images = funnel["images"]
    yield {
        **{"name": "crawled", "images": f"{images:,}", "share": "", "percent": 100},
        **{"colour": "ink", "means": "every image that was found in the crawl"},
    }
    for name in DECISIONS:
        number = funnel["decisions"][name]
        if number or name == "kept":
            yield {
                "name": name,
                "images": f"{number:,}",
                "share": share(number, images),
                "percent": f"{100 * number / max(images, 1):.2f}",
                "colour": name.replace("_", "-"),
                "means": MEANS[name],
            }


def _balance(funnel: dict[str, Any], chart: Chart | None) -> dict[str, Any] | None:
    if not (told := funnel.get("balance")) or not told["levels"]:
        return None
    headings, *rows = describe_levels(told)
    return {"said": describe_balance(told), "headings": headings, "rows": rows, "chart": chart}


def _yield(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(row["source"], f"{row['images']:,}", f"{row['kept']:,}"),
        *(share(row["kept"], row["images"]), f"{row['copies']:,}", f"{row['irrelevant']:,}"),
    )


def _settings(funnel: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of the table of thresholds, seeds, and what was measured."""
    for name, setting in funnel.get("thresholds", {}).items():
        if setting and setting.get("value") is not None:
            source = SOURCES.get(setting.get("source"), setting.get("source") or "")
            yield f"threshold of {name}", cosine_from(setting, "≥"), source
    for name, seed in funnel.get("seeds", {}).items():
        kind = "bars" if seed["negative"] else f"{seed['strategy']} retrieves"
        yield f"seed {name}", f"{kind} {seed['retrieved']:,} images", seed["description"]
    if told := funnel.get("top_up"):
        yield "top-up", f"keeps {told['kept']:,} images", describe_top_up(told)
    if groups := funnel.get("groups"):
        chains = f"{groups['chains']:,} of them chains" if groups.get("chains") else ""
        said = f"{groups['members']:,} images in {groups['count']:,} groups"
        yield "copies", said, chains and f"{chains}: two members do not reach the threshold"
    if looks := funnel.get("dedup_looks"):
        yield "looks", by_look(looks), f"below the threshold, from cosine {looks['floor']:.4f}"
    if pairs := funnel.get("dedup_pairs"):
        floor = f"from cosine {pairs['floor']:.4f}, at most {pairs['per_image']:,} of an image"
        yield "pairs listed", f"{pairs['pairs']:,}", floor
    recall = funnel.get("dedup_recall") or {}
    if recall.get("recall") is not None:
        against = (
            f"the share that the search found of {recall['pairs']:,} pairs, which exact search of "
            f"{recall['queries']:,} images finds; not of all copies there are"
        )
        yield "search completeness", f"{recall['recall']:.4f}", against
    seen = funnel.get("dedup_precision") or {}
    if seen.get("precision") is not None:
        looked = (
            f"between {seen['low']:.4f} and {seen['high']:.4f} (95%), by a look at the pixels of "
            f"{seen['pairs']:,} pairs"
        )
        yield "estimated precision of copies", f"{seen['precision']:.4f}", looked
