"""What the seeds want of the candidates, within the budget of each and that of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int16, Int64

from curate.catalogue.collection import Numbers
from curate.retrieval.answers import Answer
from curate.retrieval.candidates import load_candidates, load_exported

OVER_BUDGET = -1
"""The code of an image that a seed retrieves and has no budget for."""


@dataclass(frozen=True)
class Wish:
    """What a seed retrieves of its candidates, where the stages left it, and how many of it count."""

    candidates: Path
    chosen: Path
    max_images: int | None


def wishes_of(answers: Sequence[Answer]) -> list[Wish]:
    """Return what each seed retrieves."""
    return [
        Wish(each.candidates.folder, each.chosen.folder, each.settings.max_images)
        for each in answers
    ]


def addresses_of(answers: Sequence[Answer]) -> list[Any]:
    """Return what stands for `wishes_of` in an address."""
    return [
        [each.candidates.address, each.chosen.address, each.settings.max_images] for each in answers
    ]


@dataclass(frozen=True)
class Wishes:
    """What all seeds want, by candidate in key order.

    What a negative seed bars uses up no budget, but is not replaced: no strategy goes on for it. Where
    the run adds to a result, what that holds is taken whatever seeds and budgets say, and counts
    towards these before any other.
    """

    numbers: Numbers
    codes: list[Int8[np.ndarray, " n"]]
    """Of each seed: 0 where it wants the image, its strategy's code of why not, or `OVER_BUDGET`."""
    bars: list[Bool[np.ndarray, " n"]]
    """Of each negative seed."""
    barred_by: Int16[np.ndarray, " n"]
    """The first negative seed that bars an image, or -1."""
    retrieved: list[Bool[np.ndarray, " n"]]
    """By each seed, within its budget, and not barred."""
    taken: Bool[np.ndarray, " n"]
    """By any seed, within the budget of all."""

    @property
    def found(self) -> list[Bool[np.ndarray, " n"]]:
        """By each seed's strategy, whatever its budget and whoever bars it."""
        return [(code == 0) | (code == OVER_BUDGET) for code in self.codes]

    @property
    def sought(self) -> Bool[np.ndarray, " n"]:
        """By any seed's strategy, and not barred."""
        sought: Bool[np.ndarray, " n"] = np.any(self.found, axis=0) & (self.barred_by < 0)
        return sought


def gather_wishes(wanted: Sequence[Wish], barred: Sequence[Wish], max_images: int | None) -> Wishes:
    """Read what the seeds retrieve; `max_images` is the budget of all, for the most similar."""
    numbers, _ = load_candidates(wanted[0].candidates)
    bars = [np.load(wish.chosen / "missed.npy") == 0 for wish in barred]
    barred_by = np.full(len(numbers), -1, np.int16)
    for place, hit in reversed(list(enumerate(bars))):
        barred_by[hit] = place
    codes = [_codes(wish, barred_by < 0) for wish in wanted]
    retrieved = [(code == 0) & (barred_by < 0) for code in codes]
    stays = load_exported(wanted[0].candidates)
    taken = np.any(retrieved, axis=0) | stays
    similarity = reduce(np.maximum, (load_candidates(wish.candidates)[1] for wish in wanted))
    taken[_beyond(np.flatnonzero(taken), similarity, stays, max_images)] = False
    return Wishes(numbers, codes, bars, barred_by, retrieved, taken | stays)


def _codes(wish: Wish, free: Bool[np.ndarray, " n"]) -> Int8[np.ndarray, " n"]:
    """Return the strategy's codes of all candidates, those over the seed's budget marked."""
    codes: np.ndarray = np.load(wish.chosen / "missed.npy")
    similarity = load_candidates(wish.candidates)[1]
    stays, asked = load_exported(wish.candidates), np.flatnonzero((codes == 0) & free)
    codes[_beyond(asked, similarity, stays, wish.max_images)] = OVER_BUDGET
    return codes


def _beyond(
    rows: Int64[np.ndarray, " r"],
    similarity: Float32[np.ndarray, " n"],
    first: Bool[np.ndarray, " n"],
    most: int | None,
) -> Int64[np.ndarray, " _"]:
    """Return those of `rows` that are not among the `most` most similar, ties by row.

    Those that come `first` are the most similar.
    """
    if most is None:
        return rows[:0]
    return rows[np.lexsort((-similarity[rows], ~first[rows]))][most:]
