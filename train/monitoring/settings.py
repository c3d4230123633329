"""What a recipe may say of its monitoring: metrics, signs of collapse, k-NN scores, pictures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class LogSettings(BaseModel):
    """How often a run's metrics are written, and where."""

    model_config = ConfigDict(extra="forbid")

    every: int = Field(10, ge=1)
    """Optimiser steps from one line of metrics to the next."""
    tensorboard: bool = True
    """Whether the numbers are also written as TensorBoard events, in OUT/tensorboard."""
    wandb: str | None = None
    """The project of Weights & Biases that is to draw them too, with the extra `wandb`; its own
    variables hold, such as WANDB_MODE=offline, which needs no account."""
    mlflow: str | None = None
    """The tracking URI of an MLflow server that is to draw them too, with the extra `mlflow`: a run
    of the experiment `lvd`."""


class KnnSettings(BaseModel):
    """Which labelled images the teacher is scored on, and when; labels serve nothing else."""

    model_config = ConfigDict(extra="forbid")

    every: Annotated[int, Field(ge=1)] | Literal["auto"] | None = "auto"
    """Optimiser steps from one score to the next, beside those at both ends; null takes none, nor the
    score without labels. `auto` takes one with a line of metrics whenever all scores are at most 2 %
    of the run's time, if data is named: so when it comes depends on the machine's speed."""
    train: str | None = None
    """The images that vote: WebDataset shards with a `.cls` member, or a `cls` or `label` in the
    `.json`, beside each; Parquet files with such a column; or a folder of ROOT/CLASS/IMAGE."""
    test: str | None = None
    """The images that are classified."""
    k: int = Field(20, ge=1)
    temperature: float = Field(0.07, gt=0)
    """A neighbour's vote weighs exp(cosine / temperature)."""
    batch_size: int = Field(256, ge=1)
    """Images of one forward pass of one process."""
    size: int | None = Field(None, ge=1)
    """Side of the square images in pixels; by default that of the recipe's global views."""

    @model_validator(mode="after")
    def _data_is_named(self) -> KnnSettings:
        missing = (self.train is None) + (self.test is None)
        if missing and not (missing == 2 and self.every == "auto") and self.every is not None:
            raise ValueError("a k-NN score needs 'train' and 'test', two sets of labelled images")
        return self

    @property
    def taken(self) -> bool:
        """Whether any score is taken."""
        return self.every is not None and self.train is not None


class CollapseSettings(BaseModel):
    """When a figure counts as a sign of collapse: below its threshold."""

    model_config = ConfigDict(extra="forbid")

    grace: int = Field(1000, ge=0)
    """Steps at the start that are not judged: a fresh network with LayerScale hardly tells one
    image from another (its features have rank 1)."""
    entropy: float = Field(0.05, ge=0)
    """Of the mean teacher entropy, in nats; targets as sharp as that name one prototype each."""
    divergence: float = Field(0.05, ge=0)
    """Of the mean KL(teacher || uniform), in nats; at 0 the targets say nothing. An untrained
    ViT without LayerScale has 0.2 to 0.4 after Sinkhorn-Knopp, at temperatures 0.07 and 0.04."""
    prototypes: float = Field(0.05, ge=0, le=1)
    """Of the prototypes that come first for some view of the batch, as a share of the most that
    can: one for each image, or all there are."""
    rank: float = Field(0.02, ge=0, le=1)
    """Of the effective rank of the features, as a share of the most that it can be: the width, or
    the number of features measured. A rank under 1.5 is a sign in any case."""


class LookSettings(BaseModel):
    """Which pictures are kept of what the teacher sees, in OUT/looks."""

    model_config = ConfigDict(extra="forbid")

    times: int = Field(9, ge=0, le=50)
    """How often in a run: at both ends, and at even steps between; 0 for never."""
    pictures: int = Field(6, ge=1, le=12)
    """Images that are looked at each time, the same ones, evenly spread over the data."""
