"""What the reports hold, as `pipelines.yaml` says it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ReportSettings(BaseModel):
    """What the reports hold."""

    model_config = ConfigDict(extra="forbid")

    top_k: int = Field(5, ge=1)
    """Nearest seed images listed for an image."""
    pictures: bool = True
    """The page, and further ones with the groups of copies."""
    pairs: int = Field(8, ge=0)
    """Pairs listed for an image in `pairs.parquet`: its most similar better images, down to a floor
    below the dedup threshold. They take another search as long as that of dedup; 0: none."""
    groups: int = Field(300, ge=0)
    """Groups of copies that further pages show, the largest first, 100 a page; 0: none."""
