"""What a run says of itself beside its tables: `run.json` and `reports/funnel.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curate.dedup.looks import LOOK_COUNTS
from curate.execution.output import versions
from curate.export.bounds import ShardBounds
from curate.plan import Plan, options_of, seed_roles
from curate.report.seeds import describe_seeds
from curate.results import Results
from curate.retrieval.answers import Answer
from curate.selection.balance import balance_problems
from curate.selection.decide import Selected
from curate.selection.problems import (
    barred_problems,
    dropped_problems,
    lift_problems,
    selection_problems,
)
from curate.selection.top_up import top_up_problems
from shared.embedders.embedder import identity


def describe_run(
    plan: Plan, results: Results, bounds: ShardBounds, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what `run.json` says: from what, how and by which versions a result was made."""
    request, datasets = plan.request, results.datasets
    held = [request.held] if request.held else []
    seen = {"dedup": datasets.crawl, "retrieve": datasets.crawl_by_meaning}
    return {
        "crawl": datasets.crawl.name,
        "seed": ", ".join(request.wanted),
        "holdouts": [held.name for held in datasets.holdouts],
        "embedder": request.embedder_name,
        "revisions": {
            request.embedders[stage].name: each.revision
            for stage, each in plan.embedders.items()
            if each.revision
        },
        "embedders": {
            stage: {
                "name": request.embedders[stage].name,
                "identity": identity(each),
                **({"crawl": seen[stage].address} if stage in seen else {}),
            }
            for stage, each in plan.embedders.items()
        },
        "settings": settings,
        "options": options_of(request),
        "inputs": datasets.inputs(plan),
        "clusters": {**results.clustered.fitted, "drift": request.settings.cluster.drift},
        "shards": bounds.taken,
        "thresholds": _thresholds(results),
        "calibration": results.thresholds.calibrations,
        "datasets": {
            role: {
                "name": named.name,
                "settings": named.settings.model_dump(mode="json"),
                "content": data.address,
                "images": len(data.collection),
            }
            for role, named, data in zip(
                [
                    *("crawl", *seed_roles(request)),
                    *(f"holdout {x.name}" for x in request.holdouts),
                    *("held" for _ in held),
                ],
                [request.crawl, *(x.dataset for x in request.seeds), *request.holdouts, *held],
                [datasets.crawl, *datasets.seeds, *datasets.holdouts, *datasets.held],
                strict=True,
            )
        },
        "versions": versions(),
        **(plan.before.copies if plan.before else {}),
        **(plan.before.removals("run.json") if plan.before else {}),
    }


def count_funnel(plan: Plan, results: Results, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `reports/funnel.json` says: what became of the images, and what looks wrong."""
    counts, embedded = results.copies.counts, results.datasets.embedded
    selected, balanced = results.selected, results.balanced
    hashed, looked = results.copies.hashed, results.copies.looked
    topped_up = results.topped_up.told if results.topped_up else None
    lent = {"lent": embedded[0].lent["lent"]} if embedded[0].lent else {}
    return {
        "images": len(results.datasets.crawl.collection),
        "decisions": selected.decisions,
        "groups": {
            "count": counts["groups"],
            "members": counts["members"],
            "chains": counts["chains"],
        },
        "dedup_hash": hashed and {"method": hashed.name, **hashed.counts, **lent},
        "dedup_looks": looked and {name: looked.counts[name] for name in LOOK_COUNTS},
        "dedup_recall": results.copies.completeness,
        "dedup_precision": results.false_copies.found,
        "thresholds": _thresholds(results),
        "seeds": describe_seeds(results.answers, selected, results.included),
        "balance": balanced.told,
        "top_up": topped_up,
        "problems": [
            *(text for each in embedded for text in each.problems),
            *([hashed.problem] if hashed and hashed.problem else []),
            *(each.problem for each in results.overlaps if each.problem),
            *dropped_problems(selected.decisions),
            *_selection_problems(plan, results),
            *balance_problems(balanced.told),
            *top_up_problems(topped_up),
            *_since_problems(plan, selected),
            *_label_problems(plan, results),
        ],
        "ignored": embedded[0].ignored,
        "set_aside": [each.part for data in embedded for each in data.aside],
        "settings": settings,
        "versions": versions(),
        **(plan.before.removals("reports/funnel.json") if plan.before else {}),
    }


def _since_problems(plan: Plan, selected: Selected) -> list[str]:
    """Return a line where not all stays that an earlier result exported."""
    before = plan.before
    if before is None or selected.stayed == before.images + before.labelled:
        return []
    asked = before.images + before.labelled
    also = " or that are labelled keep" if before.labelled else ""
    return [
        f"{asked - selected.stayed:,} of the {asked:,} images that the earlier result exported{also} are "
        "not kept: they are gone from the crawl, have other bytes, or a filter, a list, a label or a "
        "holdout of this run drops them"
    ]


def _label_problems(plan: Plan, results: Results) -> list[str]:
    """Return lines on labels that this run cannot keep to."""
    labels = plan.labels
    if labels is None:
        return []
    crawl, lines = results.datasets.crawl.collection, []
    kept = 0 if plan.before else labels.counts["keep"]  # those are told beside what was exported
    if kept > results.selected.stayed:
        lines.append(
            f"{kept - results.selected.stayed:,} of the {kept:,} images that are labelled keep are not "
            "kept: they are not in this crawl, or a filter, a list or a holdout drops them"
        )
    if (apart := labels.counts["apart"]) > len(crawl.apart):
        lines.append(
            f"{apart - len(crawl.apart):,} of the {apart:,} pairs that are labelled no copies are not in "
            "this crawl"
        )
    return lines


def _thresholds(results: Results) -> dict[str, dict[str, Any]]:
    return results.thresholds.known([each.threshold for each in results.answers.wanted])


def _selection_problems(plan: Plan, results: Results) -> list[str]:
    sections = {seed.name: seed.said_at for seed in plan.request.seeds}
    decisions, answers = results.selected.decisions, results.answers
    barred = barred_problems(
        max((counts["found"] for counts in results.selected.wanted), default=0),
        decisions["kept"] + decisions["over_budget"],
        [answer.name for answer in answers.barred],
    )
    return (
        barred
        + [
            line
            for answer, counts in zip(results.answers.wanted, results.selected.wanted, strict=True)
            for line in selection_problems(
                *(counts["found"], answer.candidates.count, answer.threshold.value),
                *(answer.chosen.target, answer.settings.strategy, sections[answer.name]),
            )
        ]
        + [line for answer in answers.wanted for line in _lift_problems(plan, results, answer)]
    )


def _lift_problems(plan: Plan, results: Results, answer: Answer) -> list[str]:
    """Return a line where a threshold that this run measured for a seed hardly chooses."""
    name = "retrieve" if len(plan.request.seeds) == 1 else f"seeds.{answer.name}"
    [section] = [seed.said_at for seed in plan.request.seeds if seed.name == answer.name]
    found = results.thresholds.calibrations.get(name)
    if found is None or answer.threshold.source != "calibrated":
        return []
    return lift_problems(found["recall"], found["crawl_share"], found["threshold"], section)
