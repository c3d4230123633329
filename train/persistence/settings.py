"""What a recipe may say of its checkpoints."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class CheckpointSettings(BaseModel):
    """When checkpoints are made, and how many of them stay."""

    model_config = ConfigDict(extra="forbid")

    every: int = Field(1000, ge=1)
    """Optimiser steps from one to the next."""
    keep: int = Field(3, ge=1)
    """The newest so many stay."""
