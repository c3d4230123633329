"""The projection head of DINO, iBOT and DINOv2, from tokens to prototype logits."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from train.model.settings import HeadSettings


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
