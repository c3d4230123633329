"""What `lvd-train visualise --set` may say."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class VisualiseSettings(BaseModel):
    """What is drawn."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    pictures: int = Field(8, ge=1, le=256)
    """The first so many of the images, by key, are drawn."""
    mass: float = Field(0.6, gt=0, le=1)
    """Share of a head's attention that the patches kept of its map hold."""
    foreground: float = 0.0
    """Standard deviations above which the patches' first component is foreground."""
    nearest: int = Field(6, ge=1, le=100)
    """Neighbours drawn of each picture."""
    batch_size: int = Field(64, ge=1)
    """Images of a forward pass, where neighbours are sought."""
    workers: int = Field(4, ge=1)
    """Threads that decode images."""
