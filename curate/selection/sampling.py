"""Hierarchical sampling: so many images, as evenly as can be over what they show.

After Vo et al. (arXiv 2405.15613), as DINOv3 (arXiv 2508.10104) balances its crawl: the target is
dealt to the clusters at the top, what each gets to the clusters in it, and so on.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64
from pydantic import BaseModel, ConfigDict, Field, field_validator

from curate.neighbours.hierarchy import Hierarchy, choose_levels, find_hierarchy
from curate.retrieval.ranks import rank_within
from curate.retrieval.settings import Count, Share
from curate.selection.deal import deal

Draw = Literal["random", "nearest", "furthest"]


class BalanceSettings(BaseModel):
    """How many of the retrieved images are kept, as evenly as can be over what they show."""

    model_config = ConfigDict(extra="forbid")

    target: Count | Share | None = None
    """So many images, or this share of those that all seeds retrieve within their budgets and
    `retrieve.max_images`; null: all of them, and nothing is balanced."""
    levels: list[Annotated[int, Field(ge=1)]] | Literal["auto"] = "auto"
    """Number of clusters at each level, the lowest first, such as [1000, 100, 10]. auto: one for 50
    images (or the square root of their number), and a tenth on each of one to three levels above."""
    resample: int = Field(10, ge=0)
    """Rounds in which the centroids of a level are found again among what is nearest to each."""
    iterations: int = Field(10, ge=1)
    """Of each k-means."""
    draw: Draw = "random"
    """Which images of a lowest cluster: some, or those nearest to its centroid or furthest from it."""
    repeats: int = Field(1, ge=1)
    """How often an image counts towards the target, at most. Above 1, small clusters are filled up:
    `weight` in the reports says how often an image is to be drawn."""
    seed: int = 0

    @field_validator("levels")
    @classmethod
    def _fall(cls, levels: list[int] | Literal["auto"]) -> list[int] | Literal["auto"]:
        if levels != "auto" and (not levels or sorted(set(levels), reverse=True) != levels):
            raise ValueError("say fewer clusters on each level above, as [1000, 100, 10], or auto")
        return levels


def balance_vectors(
    vectors: Float[np.ndarray, "n d"],
    target: int | float,
    settings: BalanceSettings,
    stays: Bool[np.ndarray, " n"] | None = None,
) -> tuple[Int32[np.ndarray, " n"], Hierarchy]:
    """Return how often each image is to be drawn, 0 where it is left out, and the clusters.

    A float is a share of n. The weights add up to the target, or to `repeats` times n where that is
    less; what `stays` is drawn all the same, and counts. Without vectors there is nothing to
    cluster, and nothing is drawn.
    """
    if isinstance(target, float):
        target = max(1, round(target * len(vectors)))
    levels = choose_levels(len(vectors)) if settings.levels == "auto" else settings.levels
    hierarchy = find_hierarchy(
        vectors,
        levels,
        resample=settings.resample,
        iterations=settings.iterations,
        seed=settings.seed,
    )
    weight = sample(hierarchy, target, settings.draw, settings.repeats, settings.seed, stays)
    return weight, hierarchy


def sample(
    hierarchy: Hierarchy,
    target: int,
    draw: Draw,
    repeats: int,
    seed: int,
    stays: Bool[np.ndarray, " n"] | None = None,
) -> Int32[np.ndarray, " n"]:
    """Return how often each image is drawn, by dealing the target from the top down.

    In a lowest cluster all images are drawn equally often, and those that `draw` says (ties by row)
    once more. What `stays` is drawn at least once, before all others, so that no cluster is dealt
    less than it holds of that.
    """
    rng = np.random.default_rng(seed)
    held, own = hierarchy.counts(), hierarchy.parents[0]
    stays = np.zeros(len(own), bool) if stays is None else stays
    least = [np.bincount(own[stays], minlength=len(held[0])).astype(np.int64)]
    for parent, above in zip(hierarchy.parents[1:], held[1:], strict=True):
        least.append(np.bincount(parent, least[-1], len(above)).astype(np.int64))
    dealt = deal(held[-1] * repeats, target, rng, least[-1])
    for parent, below, lower in zip(
        hierarchy.parents[:0:-1], held[-2::-1], least[-2::-1], strict=True
    ):
        dealt = _deal_below(parent, dealt, below * repeats, rng, lower)
    if draw == "random":
        order = rng.permutation(len(own))
    else:
        sign = -1 if draw == "nearest" else 1
        order = np.argsort(sign * hierarchy.similarity, kind="stable")
    order = order[np.argsort(~stays[order], kind="stable")]
    place = np.empty(len(own), np.int64)
    place[order] = rank_within(own[order])
    all_of_them, once_more = np.divmod(dealt, np.maximum(held[0], 1))
    return (all_of_them[own] + (place < once_more[own])).astype(np.int32)


def _deal_below(
    parent: Int32[np.ndarray, " m"],
    dealt: Int64[np.ndarray, " k"],
    capacity: Int64[np.ndarray, " m"],
    rng: np.random.Generator,
    least: Int64[np.ndarray, " m"],
) -> Int64[np.ndarray, " m"]:
    """Deal what each cluster has got to the clusters in it."""
    result = np.zeros(len(parent), np.int64)
    order = np.argsort(parent, kind="stable")
    edges = np.searchsorted(parent[order], np.arange(len(dealt) + 1))
    for cluster in np.flatnonzero(dealt):
        inside = order[edges[cluster] : edges[cluster + 1]]
        result[inside] = deal(capacity[inside], int(dealt[cluster]), rng, least[inside])
    return result
