"""What a pipeline may say of retrieval: the strategy, its own settings, and the limits on all of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curate.retrieval.cluster import FromClustersSettings
from curate.retrieval.knn import KnnSettings
from shared.embedders import Threshold

Count = Annotated[int, Field(ge=1, strict=True)]
Share = Annotated[float, Field(gt=0, lt=1)]


class RetrieveSettings(BaseModel):
    """What counts as similar to the seed."""

    model_config = ConfigDict(extra="forbid")

    strategy: Literal["threshold", "knn", "cluster"] = "threshold"
    """How images are found; `knn` and `cluster` are the paper's (arXiv 2304.07193, appendix A.4)."""
    embedder: str | None = None
    """What similarity to the seed is judged by; by default the pipeline's `embedder`, else `bundled`."""
    threshold: Threshold | None = None
    """Cosine with the nearest seed image from which an image is kept, inclusive. Default: the
    embedder's own. For `knn` and `cluster` a floor: no image below it is retrieved; default: none."""
    target: Count | Share | None = None
    """In place of a threshold: so many images, or this share of those that could be relevant, are
    relevant, the most similar ones, ties by key."""
    max_images: int | None = Field(None, ge=1)
    """Budget: of the relevant images at most as many are kept, the most similar ones, ties by key."""
    knn: KnnSettings = Field(default_factory=KnnSettings)
    cluster: FromClustersSettings = Field(default_factory=FromClustersSettings)

    @model_validator(mode="after")
    def _has_one_limit(self) -> RetrieveSettings:
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

    def describe(self) -> str:
        """Return what the strategy retrieves, for people."""
        of_strategy = {"knn": self.knn.describe, "cluster": self.cluster.describe}
        if self.strategy in of_strategy:
            return of_strategy[self.strategy]()
        if self.target is not None:
            return "the images most similar to a seed image, to a target"
        return "every image whose cosine with a seed image reaches the threshold"
