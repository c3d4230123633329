"""The thresholds that a run need not measure: those of the pipeline, or those of the embedder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from curate.calibration.stored import read_stored
from shared.embedders.settings import EmbedderSettings

if TYPE_CHECKING:
    from curate.retrieval.settings import StrategySettings
    from curate.settings import PipelineSettings

NO_FLOOR = "no floor"
CALIBRATED = ("dedup", "retrieve")
"""Those that can be measured in a run."""


@dataclass(frozen=True)
class Threshold:
    """A cosine, and where it comes from: `pipeline`, `embedder`, `calibrated` or `target`; `kept`, where
    a run adds to a result in which it was calibrated.

    `no floor`: the strategy of retrieval has none, and every cosine will do.
    """

    value: float
    source: str
    drawn: float | None = None
    """Of dedup, the cosine from which two drawn pictures are copies; None where it is `value`."""

    def to_dict(self) -> dict[str, Any]:
        """Return what is known, JSON-able; `drawn` only where it is not `value`."""
        own = {"drawn": self.of_drawn} if self.of_drawn > self.value else {}
        return {"value": self.value, "source": self.source, **own}

    @property
    def of_drawn(self) -> float:
        """The cosine from which two drawn pictures are copies: not below that of all."""
        return self.value if self.drawn is None else max(self.value, self.drawn)


def known_thresholds(
    settings: PipelineSettings, embedders: Mapping[str, EmbedderSettings]
) -> dict[str, Threshold]:
    """Return those of `dedup` and `holdout` that are numbers.

    `embedders` are those for `dedup` and `retrieve`. A number of the pipeline comes before one that
    is declared with the embedder, and that before a dedup threshold that is kept in the model's
    folder and was measured with these weights at this size. A pipeline's `auto` asks for
    calibration whatever is declared.
    """
    known = {}
    embedder = embedders["dedup"]
    if found := _set_or_declared(settings.dedup.threshold, embedder.thresholds.dedup):
        known["dedup"] = found
    if is_wanted_of_folder(settings, embedder):
        stored = read_stored(embedder)
        if stored and not stored.problem and stored.values.dedup is not None:
            known["dedup"] = Threshold(stored.values.dedup, "embedder")
    if "dedup" in known and (of_drawn := settings.dedup.drawn_threshold) is not None:
        known["dedup"] = replace(known["dedup"], drawn=of_drawn)
    if settings.holdout.threshold is not None:
        known["holdout"] = Threshold(settings.holdout.threshold, "pipeline")
    return known


def known_threshold_of_seed(
    settings: StrategySettings, embedder: EmbedderSettings
) -> Threshold | None:
    """Return the threshold by which a seed retrieves; None where it is to be measured.

    What belongs to the embedder is no floor of a strategy other than `threshold`.
    """
    if settings.target is not None:
        return Threshold(-1.0, "target")  # all are candidates: it is solved for
    if settings.strategy != "threshold" and not is_number(settings.threshold):
        return Threshold(-1.0, NO_FLOOR)
    return _set_or_declared(settings.threshold, embedder.thresholds.retrieve)


def _set_or_declared(asked: float | str | None, declared: float | str | None) -> Threshold | None:
    if isinstance(asked, float | int):
        return Threshold(asked, "pipeline")
    if asked is None and isinstance(declared, float | int):
        return Threshold(declared, "embedder")
    return None


def is_wanted_of_folder(settings: PipelineSettings, copies: EmbedderSettings) -> bool:
    """Tell whether a model's folder is asked for the dedup threshold: no other place has a say."""
    return settings.dedup.threshold is None and not is_number(copies.thresholds.dedup)


def is_number(threshold: float | str | None) -> bool:
    """Tell a threshold from `auto` and from none."""
    return threshold is not None and threshold != "auto"
