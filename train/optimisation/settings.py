"""What a recipe may say of its optimiser, its schedules and its teacher."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OptimiserSettings(BaseModel):
    """AdamW, its schedules and its parameter groups; the defaults are ViT-L/14's of DINOv2."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    base_lr: float = Field(2e-4, gt=0)
    """Peak learning rate at a global batch of `reference_batch` images."""
    lr_scaling: Literal["sqrt", "linear", "none"] = "sqrt"
    """How the peak follows the global batch: `sqrt` is DINOv2's, `linear` (with 256) DINO's."""
    reference_batch: int = Field(1024, ge=1)
    min_lr: float = Field(1e-6, ge=0)
    """Where the cosine ends; not scaled with the batch. Not read where `lr_schedule` is constant."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    warmup_epochs: float = Field(80.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: tuple[float, float] = (0.04, 0.2)
    """At the start and the end of the run, a cosine between; twice the same is constant."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning rate of a layer over that of the layer above it."""
    patch_embed_lr: float = Field(0.2, ge=0)
    """Multiplies the learning rate of the patch embedding, and of nothing else."""
    decay_tokens: bool = False
    """Whether weight decay applies to the cls, mask and register tokens and to the position
    embeddings too, as in the released DINOv2 code."""
    clip: float | None = Field(3.0, gt=0)
    """Largest gradient norm of the backbone and of each head; null measures and never clips."""
    freeze_last_layer_epochs: float = Field(1.0, ge=0)
    """For so long the prototypes stay as they were drawn."""


class TeacherSettings(BaseModel):
    """How the teacher follows the student, and how sharp its targets are."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    momentum: tuple[float, float] = (0.994, 1.0)
    """Of the moving average, at the start and the end of the run, a cosine between."""
    temperature: tuple[float, float] = (0.04, 0.07)
    """At the start and the end of its own warm-up, a line between; constant from then on."""
    temperature_warmup_epochs: float = Field(30.0, ge=0)
    """May outlast the run, which then ends on the line."""
