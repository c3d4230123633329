"""What a recipe may say of its objectives: their weights, and how each is computed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Estimator = Literal["nearest", "squared_cosine"]


class CenteringSettings(BaseModel):
    """How teacher outputs are kept from collapsing."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["sinkhorn", "ema"] = "sinkhorn"
    """`sinkhorn` as in SwAV and DINOv2, or DINO's and iBOT's running centre, `ema`."""
    iterations: int = Field(3, ge=1)
    """Of Sinkhorn-Knopp."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of the running centre."""


class ObjectivesSettings(BaseModel):
    """The loss is the sum of the objectives, each times its weight; 0 switches one off."""

    model_config = ConfigDict(extra="forbid")

    dino: float = Field(1.0, ge=0)
    """Of the DINO loss between CLS tokens of different views."""
    ibot: float = Field(1.0, ge=0)
    """Of the iBOT loss at masked patches."""
    infonce: float = Field(0.0, ge=0)
    """Of InfoNCE between each view and the global ones, with the images of a group as negatives:
    tells copies, where the crops are edits of one picture, and what is alike, through a projector."""
    koleo: float = Field(0.1, ge=0)
    """Of the KoLeo regulariser, summed over the two global views."""
    koleo_estimator: Estimator = "nearest"
    """By the distance to the nearest neighbour, or by the squared cosines of all pairs."""
    student_temperature: float = Field(0.1, gt=0)
    """Of the student's softmax, in the losses of DINO and iBOT."""
    infonce_temperature: float = Field(0.05, gt=0)
    """Of the cosines in InfoNCE; SSCD's."""
    centering: CenteringSettings = Field(default_factory=CenteringSettings)
    """Of both heads' teacher outputs, each on its own."""

    @property
    def taught(self) -> bool:
        """Return whether any objective has targets of a teacher, through heads."""
        return self.dino + self.ibot > 0

    @model_validator(mode="after")
    def _something_to_learn(self) -> ObjectivesSettings:
        if not self.dino + self.ibot + self.infonce:
            raise ValueError(
                "dino, ibot and infonce are all 0, and KoLeo alone learns nothing: raise one"
            )
        return self
