"""The thresholds that a run need not measure: set in the pipeline, or declared with the embedder."""

from __future__ import annotations

from dataclasses import dataclass

from curate.settings import PipelineSettings
from shared.embedders import EmbedderSettings


@dataclass(frozen=True)
class Threshold:
    """A cosine, and where it comes from: `pipeline`, `embedder` or `calibrated`."""

    value: float
    source: str


def known_thresholds(
    settings: PipelineSettings, embedder: EmbedderSettings
) -> dict[str, Threshold]:
    """Return those of `dedup`, `retrieve` and `holdout` that are numbers.

    A pipeline's `auto` asks for calibration even where the embedder declares a number.
    """
    known = {}
    for name in ("dedup", "retrieve"):
        asked, declared = getattr(settings, name).threshold, getattr(embedder.thresholds, name)
        if asked is not None and asked != "auto":
            known[name] = Threshold(asked, "pipeline")
        elif asked is None and declared != "auto":
            known[name] = Threshold(declared, "embedder")
    if settings.holdout.threshold is not None:
        known["holdout"] = Threshold(settings.holdout.threshold, "pipeline")
    return known
