"""Decides about images before any other image is looked at: the first check that fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int8

from curate.filters.decisions import CODE, OPEN
from curate.filters.lists import CompiledList, listed
from curate.filters.quality import QualitySettings, corrupt, quality
from curate.filters.scores import FilterSettings, scored


def judge(
    facts: pa.Table,
    scores: pa.Table | None,
    valid: Bool[np.ndarray, " n"],
    settings: QualitySettings | None,
    filters: Sequence[FilterSettings] = (),
    lists: Sequence[CompiledList] = (),
    resolved: Mapping[str, Any] | None = None,
) -> tuple[Int8[np.ndarray, " n"], list[str]]:
    """Return the decision codes (`OPEN` where no check fails) and the reasons of n images.

    `valid` says which have a vector. Without `settings`, as for seeds and holdouts, only what is
    broken or has no vector is decided. `resolved` is what some filters of quality made of the whole
    crawl (`Filter.resolve`), by their settings.
    """
    assert scores is not None or not filters
    codes = np.full(len(facts), OPEN, np.int8)
    reasons = [""] * len(facts)
    checks = [
        corrupt(facts),
        *listed(facts, lists),
        *scored(scores, filters, "unsafe"),
        *quality(facts, valid, settings, resolved or {}),
        *scored(scores, filters, "low_quality"),
    ]
    for check in checks:
        rows = np.flatnonzero(check.failing & (codes == OPEN))
        codes[rows] = CODE[check.decision]
        for row in rows.tolist():
            reasons[row] = check.reason(row)
    return codes, reasons
