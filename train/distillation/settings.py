"""What a recipe says of its distillation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DistillationSettings(BaseModel):
    """A frozen network sets the targets in place of the student's moving average.

    As in DINOv2 (arXiv 2304.07193, section 5): nothing is masked, there is no stochastic depth, the
    iBOT loss is taken at all patches of both global views, and the moving average of the student,
    which teaches nobody, is the model that comes out.
    """

    model_config = ConfigDict(extra="forbid")

    teacher: str = Field(min_length=1)
    """The OUT of another run, one of its step folders or an export with heads, which then set the
    targets; or any model that `lvd-train eval` names: a model folder, a timm or an open_clip model.
    These have no heads: the targets are its tokens' cosines with anchors, tokens of other images."""
