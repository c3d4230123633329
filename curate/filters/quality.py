"""Quality: what is broken, what a filter of the registry excludes, what has no vector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from curate.filters.decisions import Check
from curate.filters.facts import FactsSettings
from curate.filters.filter import Filter
from curate.filters.picture import MEASURES, PictureSettings
from curate.filters.registry import FILTERS


class QualitySettings(FactsSettings, PictureSettings):
    """The settings of all filters of quality."""


def active(settings: QualitySettings | None) -> list[Filter]:
    """Return the filters that are on, in their order; without settings none is."""
    if settings is None:
        return []
    return [each for each in FILTERS if getattr(settings, each.setting) is not None]


def needs_measures(settings: QualitySettings) -> bool:
    """Tell whether a filter that is on looks at the measures of a picture."""
    return any(not set(each.columns).isdisjoint(MEASURES.names) for each in active(settings))


def corrupt(facts: pa.Table) -> Check:
    """Return the check for images that could not be read or decoded."""
    problems = facts["problem"]
    failing = pc.not_equal(problems.fill_null(""), "").to_numpy()
    return Check("corrupt", failing, lambda row: problems[row].as_py())


def quality(
    facts: pa.Table,
    valid: Bool[np.ndarray, " n"],
    settings: QualitySettings | None,
    resolved: Mapping[str, Any],
) -> Iterator[Check]:
    """Yield the check of each filter that is on, and the one for a vector that is not `valid`.

    `resolved` holds, by setting, what the filters with a `resolve` made of the whole crawl.
    """
    for each in active(settings):
        value = resolved[each.setting] if each.resolve else getattr(settings, each.setting)
        yield Check("low_quality", *each.find(facts, value))
    yield Check("low_quality", ~valid, lambda row: "the embedder gave no finite, non-zero vector")
