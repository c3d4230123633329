"""Says in words how many of a run's copies look false, and what to change where they are many."""

from __future__ import annotations

from typing import Any

MANY = 0.05
"""Share of false copies above which something should be changed."""


def false_copies(funnel: dict[str, Any]) -> str | None:
    """Return what a second look at the near copies told; None where there were none to look at.

    It names the share that looks false, its 95% interval, and what it was judged by.
    """
    seen = funnel.get("dedup_precision")
    if not seen:
        return None
    unread = f"{seen['unreadable']:,} pairs could not be read again"
    if seen["precision"] is None:
        return f"how many of the copies are false is not known: {unread}"
    low, high = (_percent(1 - seen[end], seen["pairs"]) for end in ("high", "low"))
    ends = f"at most {high}%" if low == "0" else f"{low} to {high}%"
    looked = [f"{seen['pairs']:,} pairs compared again by their pixels"]
    looked += [f"{seen['unsure']:,} hard to tell"] if seen["unsure"] else []
    looked += [unread] if seen["unreadable"] else []
    if joined := (funnel.get("dedup_looks") or {}).get("joined"):
        looked.append(f"{joined:,} found by such a look left out")
    share = _percent(1 - seen["precision"], seen["pairs"])
    return f"about {share}% of the copies look false, {ends} ({', '.join(looked)})"


def advice(funnel: dict[str, Any]) -> str | None:
    """Return what to change, in one line, where more than `MANY` of the copies look false.

    A threshold that the run measured follows from `dedup.precision`; any other is a number itself.
    """
    seen = funnel.get("dedup_precision")
    if not seen or seen["precision"] is None or 1 - seen["precision"] <= MANY:
        return None
    if seen["threshold"] is None:
        return "Name another dedup.embedder (no dedup.threshold tells copies from others here)"
    if (funnel.get("thresholds") or {}).get("dedup", {}).get("source") == "calibrated":
        change = ("dedup.precision", _stricter(funnel["settings"]["dedup"]["precision"]))
    else:
        change = ("dedup.threshold", seen["threshold"])
    return "Raise {0} (--set {0}={1}) or name another dedup.embedder".format(*change)


def _stricter(precision: float) -> float:
    """Return the precision that allows a tenth of the false copies, in as few digits as say so."""
    return float(f"{1 - (1 - precision) / 10:.12g}")


def _percent(share: float, of: int) -> str:
    """Return a percentage with no more digits than a share of so many can have."""
    percent = max(0.0, 100 * share)
    return f"{percent:.1f}" if 0.05 <= percent < 1 and of >= 100 else f"{percent:.0f}"
