"""What a pipeline may say of retrieval: the strategy, its own settings, the limits; for all seeds or one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curate.retrieval.cluster import FromClustersSettings
from curate.retrieval.knn import KnnSettings
from curate.retrieval.seed_index import SeedIndexSettings
from shared.embedders.settings import Threshold

Count = Annotated[int, Field(ge=1, strict=True)]
Share = Annotated[float, Field(gt=0, lt=1)]
OF_ALL = ("embedder", "max_images", "index")
"""Settings of `retrieve` that no seed has of its own, or that mean something else for one."""
OF_NEGATIVE = ("negative", "threshold")
"""All that a negative seed has."""


class StrategySettings(BaseModel):
    """What counts as similar to a seed."""

    model_config = ConfigDict(extra="forbid")

    strategy: Literal["threshold", "knn", "cluster", "auto", "none"] = "threshold"
    """How images are found; `knn` and `cluster` are the paper's (arXiv 2304.07193, appendix A.4), and
    `auto` its rule: `knn` for a seed of more images than `large_seed`, else `cluster`. `none`: no
    image is, for a seed that is only included."""
    large_seed: int = Field(1_000_000, ge=0)
    """Readable images above which a seed is large."""
    threshold: Threshold | None = None
    """Cosine with the nearest seed image from which an image is kept, inclusive. Default: the
    embedder's own. For `knn` and `cluster` a floor: no image below it is retrieved; default: none."""
    target: Count | Share | None = None
    """In place of a threshold: so many images, or this share of those that could be relevant, are
    relevant, the most similar ones, ties by key."""
    knn: KnnSettings = Field(default_factory=KnnSettings)
    cluster: FromClustersSettings = Field(default_factory=FromClustersSettings)

    @model_validator(mode="after")
    def _has_one_limit(self) -> StrategySettings:
        if self.strategy != "threshold" and self.target is not None:
            raise ValueError(
                f"target is for the strategy threshold, not for {self.strategy}: say "
                "--set retrieve.target=null (max_images is a budget for every strategy), or "
                "--set retrieve.strategy=threshold"
            )
        if self.strategy != "threshold" and self.threshold == "auto":
            raise ValueError(
                f"threshold auto is for the strategy threshold, not for {self.strategy}: say "
                "--set retrieve.threshold=null, or a number, which is then a floor"
            )
        if self.target is not None and self.threshold is not None:
            raise ValueError(
                "target and threshold exclude each other: say --set retrieve.threshold=null, or "
                "--set retrieve.target=null"
            )
        return self

    def resolve(self, images: int) -> Self:
        """Return these settings with the strategy for a seed of so many images in place of `auto`."""
        if self.strategy != "auto":
            return self
        chosen = "knn" if images > self.large_seed else "cluster"
        return self.model_copy(update={"strategy": chosen})

    def describe(self) -> str:
        """Return what the strategy retrieves, for people."""
        if self.strategy == "auto":
            return (
                f"knn ({self.knn.describe()}) for a seed of more than {self.large_seed:,} images, "
                f"else cluster ({self.cluster.describe()})"
            )
        if self.strategy == "none":
            return "nothing"
        of_strategy = {"knn": self.knn.describe, "cluster": self.cluster.describe}
        if self.strategy in of_strategy:
            return of_strategy[self.strategy]()
        if self.target is not None:
            return "the images most similar to a seed image, to a target"
        return "every image whose cosine with a seed image reaches the threshold"


class RetrieveSettings(StrategySettings):
    """How images are retrieved for every seed that says nothing else, and how many in all."""

    embedder: str | None = None
    """What similarity to the seed is judged by; by default the pipeline's `embedder`, else `bundled`."""
    max_images: int | None = Field(None, ge=1)
    """Budget: of the relevant images at most as many are kept, the most similar ones, ties by key."""
    index: SeedIndexSettings = Field(default_factory=SeedIndexSettings)


class SeedSettings(StrategySettings):
    """What one of several seeds retrieves; `retrieve` says what is not said here."""

    negative: bool = False
    """Images at `threshold` (a number, or auto) or above with one of this seed's are irrelevant."""
    include: bool = False
    """Whether the seed's own images go into the shards too, as they are."""
    max_images: int | None = Field(None, ge=1)
    """Budget of this seed: at most as many are kept for it, the most similar to it, ties by key."""

    @model_validator(mode="after")
    def _bars_by_threshold(self) -> SeedSettings:
        if not self.negative:
            return self
        others = sorted(self.model_fields_set - set(OF_NEGATIVE))
        if others:
            raise ValueError(
                f"{others[0]} is not for a negative seed, which has a threshold and nothing else"
            )
        if self.threshold is None:
            raise ValueError(
                "a negative seed needs a threshold, the cosine from which images are out: say a "
                "number, or auto for the one at which nine in ten of its own kind are found"
            )
        return self

    @property
    def takes_nothing(self) -> bool:
        """Whether nothing is kept for this seed, nor of it."""
        return self.negative or (self.strategy == "none" and not self.include)

    def describe(self) -> str:
        """Return what becomes of the images that the strategy finds, for people."""
        if self.negative:
            return "no image whose cosine with one of its images reaches the threshold"
        return super().describe()


def settings_of_seed(retrieve: RetrieveSettings, own: SeedSettings) -> dict[str, Any]:
    """Return a seed's own settings, completed by those of `retrieve`, to be validated.

    A negative seed inherits nothing; the embedder and the budget of `retrieve` are those of all.
    """
    said = own.model_dump(exclude_unset=True)
    if own.negative:
        return said
    return _merged(retrieve.model_dump(exclude_unset=True, exclude=set(OF_ALL)), said)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested sections in which a value of `above` counts more than one of `below`."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            merged[key] = _merged(below[key], above[key])
    return merged
