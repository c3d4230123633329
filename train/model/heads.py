"""The projection head of DINO, iBOT and DINOv2, from tokens to prototype logits."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import linear, normalize


class HeadSettings(BaseModel):
    """One head."""

    model_config = ConfigDict(extra="forbid")

    prototypes: int = Field(65_536, ge=2)
    hidden: int = Field(2048, ge=1)
    bottleneck: int = Field(256, ge=1)
    layers: int = Field(3, ge=1)
    """Linear layers before the prototypes."""


class HeadsSettings(BaseModel):
    """The heads of a recipe."""

    model_config = ConfigDict(extra="forbid")

    dino: HeadSettings = HeadSettings()
    ibot: HeadSettings | None = None
    """Of the iBOT objective; by default as `dino`."""
    shared: bool = False
    """One head, `dino`, for CLS and patch tokens, as in iBOT and in DINOv2's short recipe."""

    @model_validator(mode="after")
    def _one_or_two(self) -> HeadsSettings:
        if self.shared and self.ibot is not None:
            raise ValueError("a shared head has the settings of 'dino': remove 'ibot' or 'shared'")
        return self


class ProjectionHead(nn.Module):
    """An MLP, an L2-normalised bottleneck, and prototypes of unit length.

    DINO (arXiv 2104.14294, appendix C). The prototypes are weight-normalised with the gain fixed
    at 1 and have no bias, so that the logits are cosines. Initialised as published: the MLP
    truncated normal with std 0.02 and biases 0, the prototypes as torch's `Linear`.
    """

    def __init__(self, dim: int, settings: HeadSettings) -> None:
        super().__init__()
        widths = [dim, *[settings.hidden] * (settings.layers - 1), settings.bottleneck]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layer = nn.Linear(width, following)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.prototypes = nn.Parameter(torch.empty(settings.prototypes, settings.bottleneck))
        bound = settings.bottleneck**-0.5
        nn.init.uniform_(self.prototypes, -bound, bound)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return the logits: cosines of the n bottleneck vectors with the k prototypes."""
        # The kernel under torch's weight_norm: forward and backward are one pass over the
        # prototypes each, where autograd through `normalize` takes 1.5 times as long a backward.
        gain = self.prototypes.new_ones(len(self.prototypes), 1)
        directions = torch._weight_norm(self.prototypes, gain, 0)
        return linear(normalize(self.mlp(x), dim=-1), directions)
