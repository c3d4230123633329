"""`balance` and `top_up`: a sample of images that is even, or adds most to what is held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, Int64
from pydantic import ValidationError

from curate.api.arrays import checked
from curate.neighbours.search import use_threads
from curate.selection.k_centre import pick_farthest
from curate.selection.sampling import BalanceSettings, Draw, balance_vectors


@dataclass(frozen=True)
class Balanced:
    """A sample of n images, as even as can be over what they show."""

    weight: Int32[np.ndarray, " n"]
    """How often each is to be drawn; 0 where it is left out."""
    cluster: Int32[np.ndarray, " n"]
    """Its lowest cluster."""

    @property
    def kept(self) -> Bool[np.ndarray, " n"]:
        """Tell of each image whether it is drawn."""
        drawn: Bool[np.ndarray, " n"] = self.weight > 0
        return drawn


def balance(
    vectors: Float[np.ndarray, "n d"],
    target: int | float,
    *,
    levels: Sequence[int] | Literal["auto"] = "auto",
    resample: int = 10,
    iterations: int = 10,
    draw: Draw = "random",
    repeats: int = 1,
    seed: int = 0,
    held: Bool[np.ndarray, " n"] | None = None,
    threads: int = 1,
) -> Balanced:
    """Draw `target` images (or a share of them) evenly, by hierarchical k-means (arXiv 2405.15613).

    `levels` are numbers of clusters, the lowest first. The target is dealt to the clusters at the
    top, what each gets to those in it, down to images: `random` ones, those `nearest` to the centroid,
    or `furthest` from it. The weights add up to the target, or to `repeats` times n where that is
    less: with `repeats` above 1 small clusters are filled up. The other options are those of
    `balance` of a pipeline. What is `held` already is drawn before all others, at least once, and
    counts towards the target, as what an earlier result exported does in a run; if that is more than
    the target, it is all that is drawn.

    Raises ValueError for other shapes, what is not finite, and options that a pipeline would refuse.
    """
    stored = checked("vectors", vectors)
    stays = None if held is None else np.asarray(held)
    if stays is not None and (stays.dtype != bool or stays.shape != (len(stored),)):
        raise ValueError(
            f"held is {stays.dtype} {list(stays.shape)}: give a bool for each of the "
            f"{len(stored)} rows"
        )
    asked = levels if levels == "auto" else list(levels)
    try:
        settings = BalanceSettings(
            **{"target": target, "levels": asked, "resample": resample, "iterations": iterations},
            **{"draw": draw, "repeats": repeats, "seed": seed},
        )
    except ValidationError as error:
        [first, *_] = error.errors()
        raise ValueError(f"{first['loc'][0]} is {first['input']!r}: {first['msg']}") from None
    if not len(stored):
        return Balanced(np.empty(0, np.int32), np.empty(0, np.int32))
    use_threads(threads)
    weight, hierarchy = balance_vectors(stored, target, settings, stays)
    return Balanced(weight, hierarchy.parents[0])


@dataclass(frozen=True)
class ToppedUp:
    """Candidates that add to what is held, in the order in which they were picked."""

    rows: Int64[np.ndarray, " m"]
    similarity: Float32[np.ndarray, " m"]
    """The cosine of each with the nearest that was held or picked before it: it never falls, and
    tells from where on more of them add little. nan for the first one where nothing is held."""


def top_up(
    held: Float[np.ndarray, "h d"],
    candidates: Float[np.ndarray, "n d"],
    count: int,
    *,
    threads: int = 1,
) -> ToppedUp:
    """Pick the `count` candidates that add most to what is held: k-centre, greedy (Gonzalez, 1985).

    Each is the one whose nearest among all held and picked ones is least similar, ties by row.
    There are fewer where fewer have a vector that is not zero. Raises ValueError for other shapes,
    what is not finite, and a count below 1.
    """
    known, stored = checked("held", held), checked("candidates", candidates)
    if known.shape[1] != stored.shape[1]:
        raise ValueError(f"held has {known.shape[1]} dimensions, candidates {stored.shape[1]}")
    if count < 1:
        raise ValueError(f"count is {count}: ask for one candidate at least")
    use_threads(threads)
    return ToppedUp(*pick_farthest(known, stored, count))
