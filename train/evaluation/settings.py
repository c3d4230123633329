"""What `lvd-train eval --set` may say: how features are made, and each task's own settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NEAREST = 1e-3
"""Depths below a millimetre are unknown."""


class KnnEvalSettings(BaseModel):
    """Who votes, and how much."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((10, 20, 100, 200), min_length=1)
    """Numbers of neighbours; each has a score."""
    temperature: float = Field(0.07, gt=0)
    """A neighbour's vote weighs exp(cosine / temperature)."""


class LinearSettings(BaseModel):
    """How linear heads are trained on frozen features, and which is chosen."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0), min_length=1
    )
    """For a batch of 256 images: they grow in proportion to the batch. DINOv2's, 1e-4 to 0.5 in its
    paper and 1e-5 to 0.1 in its code, are for features that are not standardised."""
    batch_size: int = Field(256, ge=1)
    """Images of one step; all training images where there are fewer."""
    epochs: float = Field(10, gt=0)
    """Length of the training in passes over the training images, DINOv2's on ImageNet ..."""
    least_steps: int = Field(2500, ge=0)
    """... and no fewer steps than these, where the set is small."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of the training images that choose the head and do not train it."""
    seed: int = 0
    """Of what is held out and of the order of images."""


class LogregSettings(BaseModel):
    """The strengths of regularisation to try, and how far each fit goes."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    c: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        tuple(10.0**power for power in range(-6, 4)), min_length=1
    )
    """Inverse strengths of the L2 penalty, tried from the smallest on."""
    patience: int = Field(2, ge=1)
    """Values of C in a row that do worse on held-out images than the best one; they end the search."""
    max_iter: int = Field(300, ge=1)
    """L-BFGS iterations of one fit."""
    tolerance: float = Field(1e-4, gt=0)
    """A fit has converged where no entry of the gradient, of the loss per image, is larger."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of the training images that choose C."""
    max_images: int = Field(100_000, ge=2)
    """Of more training images so many are drawn: L-BFGS wants all it fits in memory, as float32."""
    seed: int = 0
    """Of what is held out, and drawn."""


class RetrievalSettings(BaseModel):
    """How features are scored by retrieval."""

    model_config = ConfigDict(extra="forbid")

    crop_queries: bool = True
    """Whether queries are cut to the boxes (`bbx`) of the ground truth, as the benchmark has them."""
    batch_size: int = Field(32, ge=1)
    """Images of one forward pass of the model."""
    workers: int = Field(4, ge=1)
    """Threads that decode images."""


class DenseSettings(BaseModel):
    """How a linear head on patch tokens is trained, and on what."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    size: int | None = Field(None, ge=1)
    """Side in pixels of the square that images are resized to, brought to the nearest multiple of
    the model's patch; by default the model's own input size."""
    batch_size: int = Field(16, ge=1)
    """Images of one forward pass of the model."""
    workers: int = Field(4, ge=1)
    """Threads that decode images and targets."""
    learning_rates: tuple[float, ...] = Field((3e-4, 1e-3, 3e-3, 1e-2, 3e-2), min_length=1)
    """A head is trained with each, all at once; the best one on held-out images is taken."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of the training images that choose the learning rate; then they train with the rest."""
    steps: int = Field(5000, ge=1)
    """Optimiser steps."""
    images: int = Field(16, ge=1)
    """Images of a step."""
    points: int = Field(512, ge=1)
    """Pixels drawn of each training image, once, of those that count."""
    weight_decay: float = Field(1e-4, ge=0)
    seed: int = 0


class SegmentSettings(DenseSettings):
    """How patch tokens are scored by segmentation."""

    window: int | None = Field(None, ge=1)
    """Side in pixels of windows that slide over an image of this shorter side (its longer side at
    most 4 times that), instead of one square for the whole image; DINOv2's are of 512 px. What
    several windows say of a pixel is averaged."""
    stride: int = Field(341, ge=1)
    """Pixels from one window to the next, no more than `window`."""
    ignored: int | None = None
    """The label of pixels that count for nothing, -1 for none; by default 0 for ADE20K (where it is
    all other things) and 255 for VOC (whose 0 is the background) and plain masks."""

    @model_validator(mode="after")
    def _windows_cover_images(self) -> SegmentSettings:
        if self.window is not None and self.stride > self.window:
            raise ValueError(
                f"stride ({self.stride}) is larger than window ({self.window}), which leaves gaps: "
                "set segment.stride to two thirds of it"
            )
        if self.window is not None and self.size is not None:
            raise ValueError("size is of whole images and window of their parts: leave one away")
        return self


class DepthSettings(DenseSettings):
    """How patch tokens are scored by depth."""

    cls: bool = False
    """Whether the CLS token of its image stands beside each patch token, as in DINOv2's linear
    head."""

    max_depth: float = Field(10.0, gt=NEAREST)
    """In metres: pixels farther away count for nothing, and the head's bins end here."""
    bins: int = Field(256, ge=2)
    eigen_crop: bool = False
    """Of test maps, which are then 640x480 (NYU), count only the part that Eigen et al. (arXiv
    1406.2283) projected depth to, as published figures do."""


class AttentionSettings(BaseModel):
    """How attention maps are compared with masks."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    mass: float = Field(0.6, gt=0, le=1)
    """Share of a head's attention that the patches kept of its map hold."""
    void: int = 255
    """The label of pixels that count for nothing; -1 where there are none, as in masks of 0 and 255.
    0 is the background, and all other labels are the object."""
    batch_size: int = Field(16, ge=1)
    """Images of one forward pass."""
    workers: int = Field(4, ge=1)
    """Threads that decode images and masks."""


class EvalSettings(BaseModel):
    """How models are evaluated."""

    model_config = ConfigDict(extra="forbid")

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the models; by default the machine's fastest."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = Field(64, ge=1)
    """Images of one forward pass, for knn, linear and logreg."""
    workers: int = Field(4, ge=1)
    """Threads that decode images, for knn, linear and logreg."""
    resize: int | None = Field(None, ge=1)
    """Shorter side in pixels that images are resized to (bicubic) before the model's input is cut
    from their middle, for knn, linear and logreg; by default as the model's config says. DINOv2's
    figures are of 256, those of logistic regression of 224, and all of `--size 224`."""
    seed: int = 0
    """Of the random weights of `untrained:NAME`."""
    knn: KnnEvalSettings = Field(default_factory=KnnEvalSettings)
    linear: LinearSettings = Field(default_factory=LinearSettings)
    logreg: LogregSettings = Field(default_factory=LogregSettings)
    retrieval: RetrievalSettings = Field(default_factory=RetrievalSettings)
    segment: SegmentSettings = Field(default_factory=SegmentSettings)
    depth: DepthSettings = Field(default_factory=DepthSettings)
    attention: AttentionSettings = Field(default_factory=AttentionSettings)
