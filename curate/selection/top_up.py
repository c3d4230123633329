"""Stage top_up: of what the seeds retrieve, so many images that add most to what is held already.

Held are the images of a dataset, those of included seeds, and what an earlier result exported that the
run goes on from, which count towards the target. A reduce in one process: 2 d bytes for each held and
each retrieved image, and what `pick_farthest` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from curate.catalogue.collection import Catalogued, Collection
from curate.neighbours.search import use_threads
from curate.retrieval.answers import Answers
from curate.retrieval.candidates import load_exported
from curate.retrieval.settings import Count, Share
from curate.selection.k_centre import pick_farthest
from curate.selection.wishes import Wish, addresses_of, gather_wishes, wishes_of
from curate.stage import Runner, Stage, Unit

VERSION = 1


class TopUpSettings(BaseModel):
    """How many of the retrieved images are kept: those that add most to what is held already."""

    model_config = ConfigDict(extra="forbid")

    target: Count | Share | None = None
    """So many images, or this share of those that all seeds retrieve within their budgets and
    `retrieve.max_images`; null: all of them. One after another the image is taken whose nearest among
    all held and taken ones is least similar, as the embedder for meaning sees them."""
    held: str | None = None
    """What is held: a dataset, a path, or the OUT of an earlier run: its shards, or what its list names.
    Default: nothing but the images of included seeds."""

    @model_validator(mode="after")
    def _has_a_target(self) -> TopUpSettings:
        if self.held is not None and self.target is None:
            raise ValueError("held says what to add to, and no target how many: set top_up.target")
        return self


@dataclass(frozen=True)
class TopUp:
    """What a top-up takes, as it left it in `folder`.

    By candidate in key order `weight.npy` int32, 1 for what is taken, `similarity.npy` float32, its
    cosine with the nearest image that was held or taken before it, nan for all others and where there
    is none, and `left.npy` bool, what is retrieved and not taken.
    """

    folder: Path
    told: dict[str, Any]
    """What the funnel says of it."""
    address: str


def top_up(
    runner: Runner,
    crawl: Catalogued,
    held: Sequence[Catalogued],
    answers: Answers,
    max_images: int | None,
    settings: TopUpSettings,
    threads: int,
) -> TopUp | None:
    """Choose among what the seeds retrieve within all budgets, where there is a target.

    `crawl` and `held` are as the embedder for meaning sees them.
    """
    if settings.target is None:
        return None
    wanted, barred = answers.wanted, answers.barred
    stage = Stage(
        "top_up",
        VERSION,
        [
            *(crawl.address, [each.address for each in held]),
            *(addresses_of(wanted), addresses_of(barred)),
        ],
        [max_images, settings.target, threads],
    )
    args = (
        *(crawl.collection, [each.collection for each in held]),
        *(wishes_of(wanted), wishes_of(barred), max_images, settings.target, threads),
    )
    [told] = runner.run(stage, choose_farthest, [Unit("all", args)], note="top-up")
    return TopUp(runner.folder(stage) / "all", told, stage.address)


def choose_farthest(
    crawl: Collection,
    held: list[Collection],
    wanted: list[Wish],
    barred: list[Wish],
    max_images: int | None,
    target: int | float,
    threads: int,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write what `TopUp` says, and return how many images were held, retrieved and taken."""
    use_threads(threads)
    wishes = gather_wishes(wanted, barred, max_images)
    stays = load_exported(wanted[0].candidates)
    rows = np.flatnonzero(wishes.taken & ~stays)
    known = [each.vectors(each.usable) for each in held]
    known.append(crawl.vectors(wishes.numbers[stays]))
    retrieved = len(rows) + int(stays.sum())
    wanted_in_all = target if isinstance(target, int) else max(1, round(target * retrieved))
    picked, cosines = pick_farthest(
        np.concatenate(known),
        crawl.vectors(wishes.numbers[rows]),
        max(0, wanted_in_all - int(stays.sum())),
    )
    weight = stays.astype(np.int32)
    weight[rows[picked]] = 1
    similarity = np.full(len(weight), np.nan, np.float32)
    similarity[rows[picked]] = cosines
    np.save(out / "weight.npy", weight)
    np.save(out / "similarity.npy", similarity)
    np.save(out / "left.npy", wishes.taken & (weight == 0))
    ends = [
        None if np.isnan(cosine) else float(cosine) for cosine in cosines[[0, -1][: len(picked)]]
    ]
    return {
        "target": target,
        "held": sum(map(len, known)),
        "retrieved": retrieved,
        "kept": int(weight.sum()),
        "similarity": ends,
    }


def describe_top_up(told: dict[str, Any]) -> str:
    """Return in words how many images are kept, and how much the first and the last of them add."""
    said = f"{told['kept']:,} of {told['retrieved']:,} retrieved images are kept beside {told['held']:,} held"
    cosines = [f"{cosine:.4f}" for cosine in told["similarity"] if cosine is not None]
    if not cosines:
        return said
    return f"{said}; cosine with the nearest that was there before: {' to '.join(cosines)}"


def top_up_problems(told: dict[str, Any] | None) -> list[str]:
    """Return a line where less is kept than what was asked for."""
    if told is None or isinstance(told["target"], float) or told["kept"] >= told["target"]:
        return []
    return [
        f"top_up.target asks for {told['target']:,} images, and {told['retrieved']:,} are retrieved: all "
        "of them are kept; lower the target, or retrieve more"
    ]
