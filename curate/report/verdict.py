"""What is said first of a run: what was kept, where its thresholds come from, and what looks wrong."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

from curate.dedup.false_copies import TOLERATED
from curate.report.false_copies import advice, false_copies
from curate.report.other_thresholds import Counts
from curate.report.summary import SOURCES, share
from curate.report.tables import threshold
from shared.commands import called
from shared.pages.verdicts import Remedy, Verdict

COMPLETE = 0.99
"""Of what the search for copies had to find, the share from which nothing is said."""
BROKEN = 0.05
"""Share of images that could not be decoded above which it is told."""
SAID = 3
"""Problems told here; all of them stand further down."""
_LOST = (
    ("duplicate", "are copies"),
    ("irrelevant", "are too unlike the seed"),
    ("over_budget", "are beyond a budget"),
    ("holdout", "are near an evaluation image"),
    ("low_quality", "are of low quality"),
    ("unsafe", "are unsafe"),
    ("corrupt", "cannot be decoded"),
)


def verdict(funnel: dict[str, Any], run: dict[str, Any], copies: Counts | None) -> Verdict:
    """Return what is to be said first of a run; `copies` counts them at other thresholds."""
    remedies = list(_remedies(funnel, run, copies))
    sentences = [_kept(funnel), *_thresholds(funnel)]
    measured = ", and ".join(_measured(funnel))
    if remedies and measured:
        sentences.append(_sentence(measured))
    elif not remedies:
        sentences.append(f"Nothing looks wrong{measured and ': '}{measured}.")
    return Verdict(sentences, remedies)


def rerun(run: dict[str, Any], *changes: str, folder: str = "") -> str:
    """Return the command of a run with changed settings, into a folder of its own.

    It is called by the changes, or `folder`. Of the run's own options it has those that its result
    knows: all that decide it, but for `--config`.
    """
    settings = run.get("settings", {})
    seeds = settings.get("seeds") or {run.get("seed", "SEED"): {}}
    words = ["run"]
    if settings.get("pipeline"):
        words += ["--pipeline", str(settings["pipeline"])]
    words += ["--crawl", str(settings.get("crawl") or run.get("crawl", "CRAWL"))]
    for seed in seeds:
        words += ["--seed", str(seed)]
    for holdout in run.get("holdouts", []):
        words += ["--holdout", str(holdout)]
    by_change = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(changes)).strip("-")
    words += ["--out", f"runs/curate/{folder or by_change or 'again'}"]
    said = run.get("options") or []
    changed = {change.partition("=")[0] for change in changes}
    for option, value in zip(said[::2], said[1::2], strict=True):
        if option != "--set" or value.partition("=")[0].strip() not in changed:
            words += [option, value]
    for change in changes:
        words += ["--set", change]
    later = ("{}", "{drawn}")  # the page's script puts numbers there
    quoted = (word if word.endswith(later) else shlex.quote(word) for word in words)
    return " ".join([called("lvd-curate"), *quoted])


def _kept(funnel: dict[str, Any]) -> str:
    counts, images = funnel["decisions"], funnel["images"]
    kept = f"{counts['kept']:,} of {images:,} crawled images are kept ({share(counts['kept'], images) or '0 %'})"
    lost = [f"{counts[name]:,} {why}" for name, why in _LOST if counts[name]]
    if not lost:
        return f"{kept}."
    return f"{kept}: {', '.join(lost[:-1])}{' and ' if lost[1:] else ''}{lost[-1]}."


def _thresholds(funnel: dict[str, Any]) -> Iterator[str]:
    told = []
    for stage, what in (("dedup", "copies begin"), ("retrieve", "relevance begins")):
        if (value := threshold(funnel, stage)) is not None:
            source = funnel["thresholds"][stage].get("source")
            told.append(f"{what} at cosine {value:.4g}, {SOURCES.get(source, source)}")
    if told:
        text = "; ".join(told)
        yield f"{text[0].upper()}{text[1:]}."


def _measured(funnel: dict[str, Any]) -> Iterator[str]:
    """Yield what was measured of the copies, but for what is to be mended."""
    if (looked := false_copies(funnel)) and not advice(funnel):
        yield looked
    recall = (funnel.get("dedup_recall") or {}).get("recall")
    if recall is not None and recall >= COMPLETE:
        yield f"the search found {_percent(recall)} of the pairs it had to find"


def _remedies(
    funnel: dict[str, Any], run: dict[str, Any], copies: Counts | None
) -> Iterator[Remedy]:
    counts, images = funnel["decisions"], funnel["images"]
    if images and not counts["kept"]:
        judged = counts["irrelevant"] + counts["over_budget"]
        yield Remedy("Nothing was kept.", _kept_by_target(run) if judged else "")
    if advice(funnel):
        yield _false_copies(funnel, run, copies)
    recall = funnel.get("dedup_recall") or {}
    if recall.get("recall") is not None and recall["recall"] < COMPLETE:
        yield Remedy(
            f"The search found {_percent(recall['recall'])} of the pairs it had to find, so that copies "
            "are left; more probes find more.",
            rerun(run, f"dedup.probes={_more_probes(funnel)}"),
        )
    if images and counts["corrupt"] > BROKEN * images:
        yield Remedy(
            f"{share(counts['corrupt'], images)} of the images cannot be decoded; the reasons are below. If "
            "the files were still being written, read them again.",
            f"{rerun(run)} --retry corrupt",
        )
    problems = funnel.get("problems") or []
    yield from (Remedy(_sentence(problem)) for problem in problems[:SAID])
    if len(problems) > SAID:
        yield Remedy(f"{len(problems) - SAID:,} more problems stand under Settings.")


def _kept_by_target(run: dict[str, Any]) -> str:
    """Return the command that keeps a tenth; none where a strategy takes no target."""
    retrieve = run.get("settings", {}).get("retrieve", {})
    if retrieve.get("strategy", "threshold") != "threshold":
        return ""
    given = retrieve.get("threshold") is not None
    return rerun(run, *(["retrieve.threshold=null"] if given else []), "retrieve.target=0.1")


def _false_copies(funnel: dict[str, Any], run: dict[str, Any], copies: Counts | None) -> Remedy:
    told, value = _sentence(false_copies(funnel) or ""), funnel["dedup_precision"]["threshold"]
    if value is None:
        return Remedy(f"{told} No dedup.threshold would do better: name another dedup.embedder.")
    told += f" From cosine {value:.4g} at most {TOLERATED:.0%} of those looked at would be."
    if (place := _least_from(copies, value)) is not None and copies is not None:
        now = copies.row(place)
        told += (
            f" At {copies.thresholds[place]:.4g}, {now['released']:,} of the copies would stand for "
            f"themselves, {now['of_kept']:,} of them copies of kept images."
        )
    changes = [f"dedup.threshold={value}"]
    if drawn := (funnel.get("thresholds", {}).get("dedup") or {}).get("drawn"):
        changes.append(f"dedup.drawn_threshold={max(drawn, value)}")
    return Remedy(told, rerun(run, *changes))


def _least_from(copies: Counts | None, value: float) -> int | None:
    """Return the place of the least tried threshold above the run's that is not below a value."""
    if copies is None:
        return None
    above = range(copies.at + 1, len(copies.thresholds))
    return next((place for place in above if copies.thresholds[place] >= value), None)


def _more_probes(funnel: dict[str, Any]) -> int:
    asked = funnel.get("settings", {}).get("dedup", {}).get("probes")
    return 2 * asked if isinstance(asked, int) else 40


def _percent(part: float) -> str:
    return "all" if part == 1 else f"{min(100 * part, 99.9):.1f}%"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
