"""The thresholds that a run need not measure: those of the pipeline, or those of the embedder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from curate.calibration.stored import read_stored
from shared.embedders import EmbedderSettings

if TYPE_CHECKING:
    from curate.settings import PipelineSettings

NO_FLOOR = "no floor"
CALIBRATED = ("dedup", "retrieve")
"""Those that can be measured in a run."""


@dataclass(frozen=True)
class Threshold:
    """A cosine, and where it comes from: `pipeline`, `embedder`, `calibrated` or `target`.

    `no floor`: the strategy of retrieval has none, and every cosine will do.
    """

    value: float
    source: str


def known_thresholds(
    settings: PipelineSettings, embedders: Mapping[str, EmbedderSettings]
) -> dict[str, Threshold]:
    """Return those of `dedup`, `retrieve` and `holdout` that are numbers.

    `embedders` are those for `dedup` and `retrieve`. A number of the pipeline comes before one that
    is declared with the embedder, and that before a dedup threshold that is kept in the model's
    folder and was measured with these weights at this size. A pipeline's `auto` asks for
    calibration whatever is declared. What belongs to an embedder is no floor of a strategy of
    retrieval other than `threshold`.
    """
    known = {}
    for name in CALIBRATED:
        embedder = embedders[name]
        if is_number(asked := getattr(settings, name).threshold):
            known[name] = Threshold(asked, "pipeline")
        elif asked is None and is_number(declared := getattr(embedder.thresholds, name)):
            known[name] = Threshold(declared, "embedder")
    if is_wanted_of_folder(settings, embedders["dedup"]):
        stored = read_stored(embedders["dedup"])
        if stored and not stored.problem and stored.values.dedup is not None:
            known["dedup"] = Threshold(stored.values.dedup, "embedder")
    if settings.retrieve.target is not None:
        known["retrieve"] = Threshold(-1.0, "target")  # all are candidates: it is solved for
    if settings.retrieve.strategy != "threshold" and not is_number(settings.retrieve.threshold):
        known["retrieve"] = Threshold(-1.0, NO_FLOOR)
    if settings.holdout.threshold is not None:
        known["holdout"] = Threshold(settings.holdout.threshold, "pipeline")
    return known


def is_wanted_of_folder(settings: PipelineSettings, copies: EmbedderSettings) -> bool:
    """Tell whether a model's folder is asked for the dedup threshold: no other place has a say."""
    return settings.dedup.threshold is None and not is_number(copies.thresholds.dedup)


def is_number(threshold: float | str | None) -> bool:
    """Tell a threshold from `auto` and from none."""
    return threshold is not None and threshold != "auto"
