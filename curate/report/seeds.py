"""What the funnel says of each seed, and the summary in a table."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from curate.calibration.thresholds import NO_FLOOR
from curate.retrieval.answers import Answer, Answers
from curate.selection.decide import Selected
from curate.selection.include import Included
from shared.progress import printable


def describe_seeds(
    answers: Answers, selected: Selected, included: Included
) -> dict[str, dict[str, Any]]:
    """Return by name of what size a seed is and by which strategy it retrieves how many images.

    `retrieved` counts those within its budget that no negative seed bars, or, of a negative seed,
    those that it bars; `alone` those of them that no other seed retrieves, or bars. `included` says
    what became of the images of a seed that is included, `search_recall` how much of the nearest
    images of a large seed was found on a sample (None of one that is searched whole).
    """
    found = [
        *zip(answers.wanted, selected.wanted, strict=True),
        *zip(answers.barred, selected.barred, strict=True),
    ]
    told = {answer.name: {**_describe(answer), **counts} for answer, counts in found}
    for seed, decisions in zip(included.seeds, included.decisions, strict=True):
        told[seed.name]["included"] = decisions
    return told


def _describe(answer: Answer) -> dict[str, Any]:
    threshold = answer.threshold
    return {
        "images": answer.images,
        "negative": answer.settings.negative,
        "strategy": answer.settings.strategy,
        "description": answer.settings.describe(),
        "threshold": None if threshold.source == NO_FLOOR else vars(threshold),
        "search_recall": answer.retrieved.recall,
    }


def seed_table(seeds: dict[str, dict[str, Any]]) -> Table:
    """Return a row for each seed of a funnel."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("seed", overflow="fold", max_width=30)
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("retrieved", justify="right", no_wrap=True)
    table.add_column("by it alone", justify="right", no_wrap=True)
    table.add_column("included", justify="right", no_wrap=True)
    table.add_column("strategy")
    for name, seed in seeds.items():
        sign = "-" if seed["negative"] else ""
        kind = "negative" if seed["negative"] else seed["strategy"]
        at = f" ({seed['threshold']['value']:.6g})" if seed["threshold"] else ""
        table.add_row(
            Text(printable(name)),
            f"{seed['images']:,}",
            f"{sign}{seed['retrieved']:,}",
            f"{sign}{seed['alone']:,}",
            f"{seed['included'].get('kept', 0):,}" if "included" in seed else "",
            f"{kind}: {seed['description']}{at}",
        )
    return table
