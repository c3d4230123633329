"""Writes the report's page of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curate.report.balance import describe_balance, describe_levels
from curate.report.contact_sheets import Sheet
from curate.report.false_copies import advice, false_copies
from curate.report.summary import SOURCES, by_look, cosine_from, headline, share
from curate.selection.top_up import describe_top_up
from shared.page import render_page

CHART_OF = {"threshold": "similarities", "borderline_copies": "copy_similarities"}
"""The chart above a sheet."""


def report_page(
    funnel: dict[str, Any],
    run: dict[str, Any],
    charts: Mapping[str, bytes],
    sheets: Sequence[Sheet],
    thumbs: Mapping[tuple[str | None, str], bytes],
) -> str:
    """Return the whole page.

    `charts` are PNGs by name (`funnel`, `balance` and any of `CHART_OF`), `thumbs` the JPEGs of the sheets'
    tiles by `(seed, key)`.
    """
    return render_page(
        Path(__file__).with_name("report.html"),
        title=headline(funnel, run),
        figures=list(_figures(funnel)),
        advice=advice(funnel),
        false_copies=false_copies(funnel),
        balance=list(_balance(funnel)),
        charts=charts,
        chart_of=CHART_OF,
        sheets=sheets,
        thumbs=thumbs,
        settings=list(_settings(funnel)),
        details=[
            (name, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).split("\n"))
            for name in ("problems", "settings", "versions")
            if (value := funnel.get(name))
        ],
    )


def _figures(funnel: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield counts and their names."""
    counts, images = funnel["decisions"], funnel["images"]
    yield f"{images:,}", "crawled"
    for name, decisions in (
        ("rejected", ("corrupt", "unsafe", "low_quality")),
        ("near a holdout", ("holdout",)),
        ("copies", ("duplicate",)),
        ("irrelevant", ("irrelevant",)),
        ("over budget", ("over_budget",)),
        ("kept", ("kept",)),
    ):
        count = sum(counts[decision] for decision in decisions)
        if count or name == "kept":
            yield f"{count:,}", f"{name} · {share(count, images)}"


def _balance(funnel: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table of the balance."""
    if told := funnel.get("balance"):
        yield (describe_balance(told),)
        yield from describe_levels(told)


def _settings(funnel: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of the table of thresholds and seeds."""
    for name, setting in funnel.get("thresholds", {}).items():
        if setting and setting.get("value") is not None:
            source = SOURCES.get(setting.get("source"), setting.get("source") or "")
            yield name, cosine_from(setting, "≥"), source
    for name, seed in funnel.get("seeds", {}).items():
        kind = "bars" if seed["negative"] else f"{seed['strategy']} retrieves"
        yield f"seed {name}", f"{kind} {seed['retrieved']:,} images", seed["description"]
    if told := funnel.get("top_up"):
        yield "top-up", f"keeps {told['kept']:,} images", describe_top_up(told)
    if looks := funnel.get("dedup_looks"):
        yield "dedup looks", by_look(looks), f"below the threshold, from {looks['floor']:.4f}"
    recall = funnel.get("dedup_recall") or {}
    if recall.get("recall") is not None:
        against = f"{recall['pairs']:,} pairs by exact search of {recall['queries']:,} images"
        yield "dedup recall", f"{recall['recall']:.4f}", against
