"""The thresholds that a run need not measure: those of the pipeline, or those of the embedder."""

from __future__ import annotations

from dataclasses import dataclass

from curate.calibration.stored import read_stored
from curate.settings import PipelineSettings
from shared.embedders import EmbedderSettings

CALIBRATED = ("dedup", "retrieve")
"""Those that are measured where they are not known."""


@dataclass(frozen=True)
class Threshold:
    """A cosine, and where it comes from: `pipeline`, `embedder` or `calibrated`."""

    value: float
    source: str


def known_thresholds(
    settings: PipelineSettings, embedder: EmbedderSettings
) -> dict[str, Threshold]:
    """Return those of `dedup`, `retrieve` and `holdout` that are numbers.

    A number of the pipeline comes before one that is declared with the embedder, and that before
    one that is kept in the model's folder and was measured with these weights at this size. A
    pipeline's `auto` asks for calibration whatever is declared.
    """
    known = {}
    for name in CALIBRATED:
        if is_number(asked := getattr(settings, name).threshold):
            known[name] = Threshold(asked, "pipeline")
        elif asked is None and is_number(declared := getattr(embedder.thresholds, name)):
            known[name] = Threshold(declared, "embedder")
    if settings.holdout.threshold is not None:
        known["holdout"] = Threshold(settings.holdout.threshold, "pipeline")
    if wanted := wanted_of_folder(settings, embedder):
        stored = read_stored(embedder)
        if stored is not None and not stored.problem:
            for name in wanted:
                if (value := getattr(stored.values, name)) is not None:
                    known[name] = Threshold(value, "embedder")
    return known


def wanted_of_folder(settings: PipelineSettings, embedder: EmbedderSettings) -> list[str]:
    """Return the thresholds that a model's folder is asked for: no other place has a say."""
    return [
        name
        for name in CALIBRATED
        if getattr(settings, name).threshold is None
        and not is_number(getattr(embedder.thresholds, name))
    ]


def is_number(threshold: float | str | None) -> bool:
    """Tell a threshold from `auto` and from none."""
    return threshold is not None and threshold != "auto"
