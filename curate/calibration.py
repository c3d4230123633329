"""Stage calibrate: thresholds that fit the embedder and the data."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

VERSION = 1


class CalibrateSettings(BaseModel):
    """How much is measured."""

    model_config = ConfigDict(extra="forbid")
    seed: int = 0
