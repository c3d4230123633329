"""The part of the page where a threshold is chosen: its histogram, its slider, its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from curate.report.bands import copy_bands, relevance_bands
from curate.report.charts import Chart, histogram, pair_bins, similarity_bins
from curate.report.contact_sheets import Sheet
from curate.report.other_thresholds import Counts, copy_counts, relevance_counts
from curate.report.tables import threshold
from curate.report.verdict import rerun

Sentence = Sequence[tuple[str, str]]
"""Texts, each with the name of the count behind it, or ""."""


@dataclass(frozen=True)
class ThresholdSection:
    """What the template draws of one threshold."""

    name: str
    short: str
    title: str
    note: str
    above: str
    """The colour of what reaches the threshold; `below` that of the rest."""
    below: str
    chart: Chart | None
    said: str
    """The chart in words."""
    legend: list[tuple[str, str]]
    counts: Counts | None
    sentence: Sentence
    sheet: Sheet
    query: str
    headings: list[str] = field(default_factory=list)
    command: str = ""
    at_least: float = -1.0
    """What `{drawn}` in the command is, where the threshold is not above it."""

    @property
    def table(self) -> list[list[str]]:
        """Some rows of the counts."""
        if self.counts is None:
            return []
        return [
            [
                f"{self.counts.thresholds[place]:.6g}",
                *(f"{self.counts.columns[name][place]:,}" for name in self._named),
            ]
            for place in self.counts.some()
        ]

    @property
    def data(self) -> dict[str, Any]:
        """What the script looks up."""
        assert self.counts is not None
        ends = (self.chart.low, self.chart.high) if self.chart else (0.0, 1.0)
        return {
            **self.counts.told(),
            **{"low": ends[0], "high": ends[1]},
            **{"command": self.command, "at_least": self.at_least},
        }

    @property
    def _named(self) -> list[str]:
        return [name for _, name in self.sentence if name not in ("", "threshold")]


def relevance_section(
    tables: duckdb.DuckDBPyConnection,
    funnel: dict[str, Any],
    run: dict[str, Any],
    query: str,
) -> ThresholdSection | None:
    """Return how similar images are to the seed, and what another threshold would keep; None of none."""
    value = threshold(funnel, "retrieve")
    bins = similarity_bins(tables, value)
    if not bins:
        return None
    seeds = funnel.get("seeds", {})
    by_threshold = all(each["strategy"] == "threshold" for each in seeds.values())
    counts = relevance_counts(tables, value if by_threshold else None, "retrieve.threshold")
    label = "cosine with the nearest seed image"
    note = (
        "Similarity is the cosine of two images' vectors: 1 for the same picture. An image is relevant "
        "from the threshold on."
    )
    if counts is None:
        note += " This run's seeds retrieve in another way, or by several thresholds."
    elif any(each["negative"] for each in seeds.values()):
        note += " Negative seeds bar some of those that reach it."
    legend = {each.decision: each.images for each in bins}
    totals = {name: sum(each.images for each in bins if each.decision == name) for name in legend}
    return ThresholdSection(
        name="relevance",
        short="Relevance",
        title="Choose the threshold of relevance",
        note=note,
        above="kept",
        below="irrelevant",
        chart=histogram("relevance", bins, label, "images"),
        said=f"histogram of the {label}: "
        + ", ".join(f"{name} {number:,}" for name, number in totals.items()),
        legend=[(name.replace("_", "-"), f"{name} {n:,}") for name, n in totals.items()],
        counts=counts,
        sentence=[
            ("", "reach"),
            (" images reach it, before any budget: ", "stay"),
            (" of those kept now, and ", "enter"),
            (" that are irrelevant now.", ""),
        ],
        sheet=relevance_bands(tables, value),
        query=query,
        headings=["threshold", "reach it", "kept now", "irrelevant now"],
        command=command_by_relevance(run),
    )


def command_by_relevance(run: dict[str, Any]) -> str:
    """Return the command of a run at another threshold of relevance, in place of a target.

    It names the sections of seeds that say theirs themselves, and is "" where no `--set` can.
    """
    settings = run.get("settings", {})
    common = settings.get("retrieve", {})
    sections = {"retrieve": common}
    for name, seed in settings.get("seeds", {}).items():
        own = any(seed.get(key) != common.get(key) for key in ("threshold", "target"))
        if own and not seed.get("negative"):
            if "." in name:
                return ""
            sections[f"seeds.{name}"] = seed
    changes = []
    for name, section in sections.items():
        changes += [f"{name}.target=null"] if section.get("target") is not None else []
        changes.append(f"{name}.threshold={{}}")
    return rerun(run, *changes, folder="relevance-at-{}")


def copies_section(
    tables: duckdb.DuckDBPyConnection,
    funnel: dict[str, Any],
    run: dict[str, Any],
    query: str,
) -> ThresholdSection | None:
    """Return how similar pairs are, and what another threshold would call copies; None without pairs."""
    value = threshold(funnel, "dedup")
    bins = pair_bins(tables, value)
    if not bins:
        return None
    counts, listed = copy_counts(tables, value), funnel.get("dedup_pairs")
    note = "Two images whose similarity reaches the threshold are copies: the better one stands for both. "
    if listed:
        note += (
            f"Pairs are listed from cosine {listed['floor']:.4g}, of each image those with the "
            f"{listed['per_image']:,} most similar better ones; below, nothing was looked for."
        )
    else:
        note += "Of pairs below the threshold this result has no list (report.pairs)."
    if counts is not None:
        note += (
            " The counts group all images anew by these pairs: by vectors alone, so that copies which "
            "looks at pixels found, or that are copies of an included seed, come on top."
        )
        if any(counts.columns["undecided"]):
            note += " Where an image has more pairs than are listed, some stay undecided."
        if listed and listed["left_out"]:
            note += (
                f" {listed['left_out']:,} members of large groups take no part: at lower thresholds copies "
                "are at least so many, at higher ones these are undecided."
            )
    above, below = (
        sum(each.images for each in bins if each.decision == name) for name in ("duplicate", "kept")
    )
    sentence = [
        ("", "copies"),
        (" images are copies, ", "standing"),
        (" stand for themselves: ", "kept"),
        (" of those kept now, and ", "released"),
        (" of what is a duplicate now, of which ", "of_kept"),
        (" are copies of a kept image. ", ""),
    ]
    headings = ["threshold", "copies", "standing", "kept now", "duplicates now", "of kept"]
    if counts is not None and any(counts.columns["undecided"]):
        sentence += [("", "undecided"), (" images are undecided.", "")]
        headings.append("undecided")
    if counts is not None and "would_keep" in counts.columns:
        looked = (funnel.get("settings", {}).get("dedup") or {}).get("looks")
        about = "about " if looked or any(counts.columns["undecided"]) else ""
        sentence += [(f" A run at it would keep {about}", "would_keep"), (".", "")]
        headings.append("would be kept")
        note += " What would be kept is counted likewise, by the thresholds of this run's seeds."
    of_drawn = (funnel.get("thresholds", {}).get("dedup") or {}).get("drawn")
    changes = ["dedup.threshold={}", *(["dedup.drawn_threshold={drawn}"] if of_drawn else [])]
    return ThresholdSection(
        name="copies",
        short="Copy threshold",
        title="Choose the threshold of copies",
        note=note,
        above="duplicate",
        below="kept",
        chart=histogram("copies", bins, "cosine of a pair of crawled images", "pairs", log=True),
        said=f"histogram of the similarity of pairs: {above:,} reach the threshold, {below:,} do not",
        legend=[("duplicate", f"copies {above:,}"), ("kept", f"below the threshold {below:,}")],
        counts=counts,
        sentence=sentence,
        sheet=copy_bands(tables, value),
        query=query,
        headings=headings,
        command=rerun(run, *changes, folder="copies-at-{}"),
        at_least=of_drawn or -1.0,
    )
