"""What objectives are taken through: heads, from tokens to prototype logits, and projectors."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from train.model.logits import Logits, product_of
from train.model.settings import HeadSettings, ProjectorSettings


class ProjectionHead(nn.Module):
    """An MLP, an L2-normalised bottleneck, and weight-normalised prototypes.

    DINO (arXiv 2104.14294, appendix C). The prototypes are weight-normalised and have no bias. The
    gain is fixed at 1, so that the logits are cosines, unless the settings have it trained.
    Initialised as published: the MLP truncated normal with std 0.02 and biases 0, the prototypes as
    torch's `Linear`, the gain 1.
    """

    gain: Float[nn.Parameter, "k 1"] | None

    def __init__(self, dim: int, settings: HeadSettings) -> None:
        super().__init__()
        self.mlp = _mlp(dim, settings.hidden, settings.layers, settings.bottleneck)
        self.prototypes = nn.Parameter(torch.empty(settings.prototypes, settings.bottleneck))
        bound = settings.bottleneck**-0.5
        nn.init.uniform_(self.prototypes, -bound, bound)
        gain = nn.Parameter(torch.ones(settings.prototypes, 1)) if settings.train_gain else None
        self.register_parameter("gain", gain)

    def forward(self, x: Float[Tensor, "n d"]) -> Logits:
        """Return the logits: cosines of the n bottleneck vectors with the k prototypes, times the
        gain of each prototype.
        """
        # The kernel under torch's weight_norm: forward and backward are one pass over the
        # prototypes each, where autograd through `normalize` takes 1.5 times as long a backward.
        gain: Tensor | None = self.gain
        bound = 1.0 if gain is None else None
        if gain is None:
            gain = self.prototypes.new_ones(len(self.prototypes), 1)
        directions = torch._weight_norm(self.prototypes, gain, 0)
        return product_of(normalize(self.mlp(x), dim=-1), directions, bound)


class Projector(nn.Module):
    """An MLP between the CLS token and InfoNCE, whose output nothing else reads.

    SimCLR (arXiv 2002.05709, section 4.2): what the objective makes the same in all views, colours
    for one, is lost behind the MLP and stays in the token before it.
    """

    def __init__(self, dim: int, settings: ProjectorSettings) -> None:
        super().__init__()
        self.mlp = _mlp(dim, settings.hidden, settings.layers, settings.width)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n w"]:
        """Return the projections, of any length."""
        return self.mlp(x)


def _mlp(dim: int, hidden: int, layers: int, width: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise([dim, *[hidden] * (layers - 1), width]):
        layer = nn.Linear(inputs, outputs)
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
        modules += [layer, nn.GELU()]
    return nn.Sequential(*modules[:-1])
