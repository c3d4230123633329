"""Stage calibrate: gives dedup, retrieve and holdout their thresholds: set, declared, or measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from curate.calibration import measure
from curate.calibration.thresholds import CALIBRATED, Threshold, known_thresholds
from curate.catalogue.collection import Catalogued
from curate.catalogue.originals import save_parts
from curate.stage import Runner, Stage
from shared.progress import warn

if TYPE_CHECKING:
    from curate.plan import Plan

FEW = 100
"""Images under which a calibration is not to be trusted blindly."""


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a run, and how those that were measured in it were found."""

    dedup: Threshold
    retrieve: Threshold
    holdout: Threshold
    has_holdouts: bool
    calibrations: dict[str, dict[str, Any]] = field(default_factory=dict)

    def known(self) -> dict[str, dict[str, Any]]:
        """Return value and source of each that the run uses, JSON-able."""
        names = ["dedup", "retrieve", *(["holdout"] if self.has_holdouts else [])]
        return {name: vars(getattr(self, name)) for name in names}


def find_thresholds(
    runner: Runner, plan: Plan, crawl: Catalogued, crawl_by_meaning: Catalogued, seed: Catalogued
) -> Thresholds:
    """Return the thresholds of a run; warns where a measured one is not to be trusted."""
    known = known_thresholds(plan.request.settings, plan.embedders)
    calibrations: dict[str, dict[str, Any]] = {}
    if unknown := [name for name in CALIBRATED if name not in known]:
        with runner.at_work("calibrate"):
            for name in unknown:
                calibrations[name] = calibrate(
                    runner, plan, name, crawl if name == "dedup" else crawl_by_meaning, seed
                )
                known[name] = Threshold(calibrations[name]["threshold"], "calibrated")
        if not calibrations.get("dedup", {"separates": True})["separates"]:
            warn(
                f"embedder {plan.request.embedders['dedup'].name} does not tell edited copies from "
                "other images: trust no group of copies but the exact ones"
            )
        if (few := len(crawl.collection.usable)) < FEW:
            warn(f"thresholds were calibrated on {few} images only: look at the pictures")
    return Thresholds(
        known["dedup"],
        known["retrieve"],
        known.get("holdout", known["dedup"]),
        bool(plan.request.holdouts),
        calibrations,
    )


def calibrate(
    runner: Runner, plan: Plan, name: str, crawl: Catalogued, seed: Catalogued
) -> dict[str, Any]:
    """Return the calibration of `dedup` (from the crawl alone) or `retrieve`, as measured.

    `crawl` is as the embedder concerned sees it.
    """
    settings = plan.request.settings
    datasets = [crawl] if name == "dedup" else [crawl, seed]
    addresses = [dataset.address for dataset in datasets]
    stage = Stage("calibrate", measure.VERSION, addresses, settings.calibrate.model_dump())
    last = datasets[-1]
    return measure.measure(
        runner,
        stage,
        (plan.embedders[name], settings.engine.threads),
        [dataset.collection for dataset in datasets],
        save_parts(last.parts, runner.scratch / f"parts-{last.address}.json"),
        settings.embed.max_pixels,
        settings.calibrate,
    )
