"""Stage calibrate: gives dedup, each seed and holdout their thresholds: set, declared, or measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curate.calibration.dedup_threshold import UnmeasurableError
from curate.calibration.measure import VERSIONS, measure_dedup, measure_retrieve
from curate.calibration.retrieve_threshold import FEWEST
from curate.calibration.sides import Sides, find_dedup_sides, find_retrieve_sides
from curate.calibration.thresholds import (
    NO_FLOOR,
    Threshold,
    known_threshold_of_seed,
    known_thresholds,
)
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
    seeds: tuple[Threshold, ...]
    """Of each seed, in the order of the request; -1 where its target is to be solved for."""
    holdout: Threshold
    has_holdouts: bool
    calibrations: dict[str, dict[str, Any]] = field(default_factory=dict)

    def known(self, retrieve: Sequence[Threshold]) -> dict[str, dict[str, Any]]:
        """Return value and source of each that the run uses, JSON-able.

        `retrieve` are those of the seeds that are wanted, as it used them: told if it is one.
        """
        found = {"dedup": self.dedup}
        if len(set(retrieve)) == 1 and retrieve[0].source != NO_FLOOR:
            found["retrieve"] = retrieve[0]
        if self.has_holdouts:
            found["holdout"] = self.holdout
        return {name: each.to_dict() for name, each in found.items()}


def find_thresholds(
    runner: Runner,
    plan: Plan,
    crawl: Catalogued,
    crawl_by_meaning: Catalogued,
    seeds: Sequence[Catalogued],
) -> Thresholds:
    """Return the thresholds of a run; warns where one is not to be trusted.

    The dedup threshold is measured whatever is known of it, where the crawl has pairs enough: what
    belongs to the embedder is used only where this crawl does not contradict it. A run that goes on from
    a result measures nothing that was measured for that.
    """
    known = known_thresholds(plan.request.settings, plan.embedders)
    calibrations: dict[str, dict[str, Any]] = {}
    few = len(crawl.collection.usable)
    of_seeds: list[Threshold] = []
    before = plan.before
    with runner.at_work("calibrate"):
        kept = before.keep_dedup(known.get("dedup")) if before else None
        if before is not None and kept is not None:
            known["dedup"] = kept
            calibrations = {k: v for k, v in before.calibrations.items() if k == "dedup"}
        elif "dedup" not in known or few >= FEWEST:
            try:
                found = calibrate_dedup(runner, plan, crawl)
            except UnmeasurableError:
                if "dedup" not in known:
                    raise
                warn(
                    f"dedup.threshold {known['dedup'].value} is used unmeasured: the crawl has too few "
                    "pairs of different pictures"
                )
            else:
                calibrations["dedup"] = found
                name = plan.request.embedders["dedup"].name
                known["dedup"] = judged(known.get("dedup"), found, name)
                if (of_drawn := plan.request.settings.dedup.drawn_threshold) is not None:
                    known["dedup"] = replace(known["dedup"], drawn=of_drawn)
        for asked, seed in zip(plan.request.seeds, seeds, strict=True):
            threshold = known_threshold_of_seed(asked.settings, plan.meaning)
            if threshold is None:
                name = "retrieve" if len(seeds) == 1 else f"seeds.{seed.name}"
                there = before.calibration_of(seed.name) if before else None
                found = there or calibrate_retrieve(runner, plan, crawl_by_meaning, seed)
                calibrations[name] = found
                threshold = Threshold(found["threshold"], "kept" if there else "calibrated")
            of_seeds.append(threshold)
    if few < FEW and "calibrated" in {each.source for each in (known["dedup"], *of_seeds)}:
        warn(f"thresholds were calibrated on {few} images only: look at the pictures")
    return Thresholds(
        known["dedup"],
        tuple(of_seeds),
        known.get("holdout", known["dedup"]),
        bool(plan.request.holdouts),
        calibrations,
    )


def calibrate_dedup(runner: Runner, plan: Plan, crawl: Catalogued) -> dict[str, Any]:
    """Return the calibration of `dedup`, from the crawl alone, as its embedder sees it."""
    settings = plan.request.settings
    return measure_dedup(
        *(runner, _stage(plan, crawl), (plan.copies, settings.engine.threads), crawl.collection),
        *(_parts(runner, crawl), settings.embed.max_pixels, settings.dedup.precision),
        settings.calibrate,
    )


def calibrate_retrieve(
    runner: Runner, plan: Plan, crawl: Catalogued, seed: Catalogued
) -> dict[str, Any]:
    """Return the calibration of a seed's threshold; both as the embedder for meaning sees them."""
    settings = plan.request.settings
    return measure_retrieve(
        *(runner, _stage(plan, crawl, seed), crawl.collection, seed.collection),
        *(_parts(runner, seed), settings.embed.max_pixels, settings.calibrate),
    )


def find_sides(
    runner: Runner, plan: Plan, name: str, crawl: Catalogued, seed: Catalogued, threshold: float
) -> dict[str, Sides]:
    """Return pairs of images on both sides of a threshold that `calibrate` measured."""
    settings = plan.request.settings.calibrate
    if name == "dedup":
        stage = _stage(plan, crawl)
        return find_dedup_sides(runner, stage, crawl.collection, threshold, settings)
    stage = _stage(plan, crawl, seed)
    return find_retrieve_sides(
        runner, stage, crawl.collection, seed.collection, threshold, settings
    )


def _stage(plan: Plan, *measured: Catalogued) -> Stage:
    inputs = [each.address for each in measured]
    return Stage("calibrate", VERSIONS, inputs, plan.request.settings.calibrate.model_dump())


def _parts(runner: Runner, measured: Catalogued) -> Path:
    return save_parts(measured.parts, runner.scratch / f"parts-{measured.address}.json")


def judged(known: Threshold | None, measured: dict[str, Any], embedder: str) -> Threshold:
    """Return the dedup threshold to use, and warn where the measurement contradicts a known one.

    A number of the pipeline is used all the same, one that belongs to the embedder is replaced.
    """
    is_own = measured["drawn_threshold"] > measured["threshold"]
    measured_drawn = measured["drawn_threshold"] if is_own else None
    found = Threshold(measured["threshold"], "calibrated", measured_drawn)
    asked = f"precision {measured['precision_asked']} among {measured['size']:,} images"
    if known is not None and known.source == "pipeline":
        if known.value >= measured["at_least"] and known.of_drawn >= measured["drawn_at_least"]:
            return known
        warn(
            f"dedup.threshold {known.value} is used as set, but does not keep {asked}, which takes "
            f"{found.value} as measured in this run: say --set dedup.threshold=auto"
        )
        return known
    if known is not None and known.value >= measured["at_least"]:
        return replace(known, drawn=measured_drawn)
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
