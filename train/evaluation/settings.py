"""What `lvd-train eval --set` may say: how features are made, and each task's own settings."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from train.evaluation.attention import AttentionSettings
from train.evaluation.depth import DepthSettings
from train.evaluation.knn import KnnEvalSettings
from train.evaluation.linear import LinearSettings
from train.evaluation.logistic import LogregSettings
from train.evaluation.retrieval import RetrievalSettings
from train.evaluation.segmentation import SegmentSettings


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
    seed: int = 0
    """Of the random weights of `untrained:NAME`."""
    knn: KnnEvalSettings = Field(default_factory=KnnEvalSettings)
    linear: LinearSettings = Field(default_factory=LinearSettings)
    logreg: LogregSettings = Field(default_factory=LogregSettings)
    retrieval: RetrievalSettings = Field(default_factory=RetrievalSettings)
    segment: SegmentSettings = Field(default_factory=SegmentSettings)
    depth: DepthSettings = Field(default_factory=DepthSettings)
    attention: AttentionSettings = Field(default_factory=AttentionSettings)
