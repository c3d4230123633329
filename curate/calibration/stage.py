"""Stage calibrate: gives dedup, retrieve and holdout their thresholds: set, declared, or measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from curate.calibration.measure import VERSION, measure_dedup, measure_retrieve
from curate.calibration.retrieve_threshold import FEWEST
from curate.calibration.sides import Sides, find_dedup_sides, find_retrieve_sides
from curate.calibration.thresholds import NO_FLOOR, Threshold, known_thresholds
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
        found: dict[str, Threshold] = {name: getattr(self, name) for name in names}
        return {name: vars(each) for name, each in found.items() if each.source != NO_FLOOR}


def find_thresholds(
    runner: Runner, plan: Plan, crawl: Catalogued, crawl_by_meaning: Catalogued, seed: Catalogued
) -> Thresholds:
    """Return the thresholds of a run; warns where one is not to be trusted.

    The dedup threshold is measured whatever is known of it: what belongs to the embedder is used
    only where this crawl does not contradict it.
    """
    known = known_thresholds(plan.request.settings, plan.embedders)
    calibrations: dict[str, dict[str, Any]] = {}
    few = len(crawl.collection.usable)
    with runner.at_work("calibrate"):
        if "dedup" not in known or few >= FEWEST:
            found = calibrations["dedup"] = calibrate(runner, plan, "dedup", crawl, seed)
            name = plan.request.embedders["dedup"].name
            known["dedup"] = judged(known.get("dedup"), found, name)
        if "retrieve" not in known:
            found = calibrations["retrieve"] = calibrate(
                runner, plan, "retrieve", crawl_by_meaning, seed
            )
            known["retrieve"] = Threshold(found["threshold"], "calibrated")
    if few < FEW and "calibrated" in {each.source for each in known.values()}:
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
    measured = crawl if name == "dedup" else seed
    stage = _stage(plan, name, crawl, seed)
    parts = save_parts(measured.parts, runner.scratch / f"parts-{measured.address}.json")
    max_pixels = settings.embed.max_pixels
    if name == "dedup":
        return measure_dedup(
            *(runner, stage, (plan.copies, settings.engine.threads), crawl.collection, parts),
            *(max_pixels, settings.dedup.precision, settings.calibrate),
        )
    return measure_retrieve(
        *(runner, stage, crawl.collection, seed.collection, parts, max_pixels, settings.calibrate)
    )


def find_sides(
    runner: Runner, plan: Plan, name: str, crawl: Catalogued, seed: Catalogued, threshold: float
) -> dict[str, Sides]:
    """Return pairs of images on both sides of a threshold that `calibrate` measured."""
    stage, settings = _stage(plan, name, crawl, seed), plan.request.settings.calibrate
    if name == "dedup":
        return find_dedup_sides(runner, stage, crawl.collection, threshold, settings)
    return find_retrieve_sides(
        runner, stage, crawl.collection, seed.collection, threshold, settings
    )


def _stage(plan: Plan, name: str, crawl: Catalogued, seed: Catalogued) -> Stage:
    inputs = [crawl.address] if name == "dedup" else [crawl.address, seed.address]
    return Stage("calibrate", VERSION, inputs, plan.request.settings.calibrate.model_dump())


def judged(known: Threshold | None, measured: dict[str, Any], embedder: str) -> Threshold:
    """Return the dedup threshold to use, and warn where the measurement contradicts a known one.

    A number of the pipeline is used all the same, one that belongs to the embedder is replaced.
    """
    found = Threshold(measured["threshold"], "calibrated")
    asked = f"precision {measured['precision_asked']} among {measured['size']:,} images"
    if known is not None and known.value >= measured["at_least"]:
        return known
    if known is not None and known.source == "pipeline":
        warn(
            f"dedup.threshold {known.value} is used as set, but does not keep {asked}, which takes "
            f"{found.value} as measured in this run: say --set dedup.threshold=auto"
        )
        return known
    if not measured["separates"]:
        warn(
            f"embedder {embedder} finds {measured['recall']:.0%} of edited copies at {asked}: trust few "
            "groups of copies but the exact ones, or try --set dedup.embedder=descriptor"
        )
    if known is not None:
        warn(
            f"the dedup threshold {known.value} of embedder {embedder} does not keep {asked}: "
            f"{found.value} is used, as measured in this run"
        )
    return found
