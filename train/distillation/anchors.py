"""A head for teachers that have none: cosines with tokens of other images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from train.distributed.ranks import Ranks, sum_over_ranks
from train.model.logits import Logits, product_of
from train.seeds import derive

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""What maps views to (CLS tokens [n, d], patch tokens [n, p, d])."""


class AnchorHead(nn.Module):
    """Logits of a token: its cosines with anchors, all seen from the anchors' mean.

    How an image relates to others is what students learn in SEED (arXiv 2101.04731) and CompRess
    (arXiv 2010.14713). The mean is taken off because the tokens of a Vision Transformer lie in a
    narrow cone, where all cosines are near 1.
    """

    mean: Float[Tensor, " d"]
    anchors: Float[Tensor, "k d"]

    def __init__(self, dim: int, anchors: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("anchors", torch.zeros(anchors, dim))

    def forward(self, x: Float[Tensor, "n d"]) -> Logits:
        """Return the cosines of n tokens with the k anchors."""
        return product_of(normalize(x - self.mean, dim=-1), self.anchors, bound=1.0)

    def anchor_at(self, tokens: Float[Tensor, "k d"]) -> None:
        """Take these tokens as the anchors."""
        self.mean.copy_(tokens.mean(dim=0))
        self.anchors.copy_(normalize(tokens - self.mean, dim=-1))


@torch.no_grad()
def sample_anchors(
    encode: Encode,
    views: Iterable[Float[Tensor, "n 3 h w"]],
    counts: tuple[int, int],
    seed: int,
    ranks: Ranks,
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k2 d"]]:
    """Return CLS and patch tokens, `counts` of each, of as many `views` as that takes.

    The CLS tokens of the first views, and of each view as many patches, drawn by `seed`, as it takes
    to have all from the same views. Each process encodes its own views; all return the same tokens.
    `views` must not come to an end.
    """
    shares = [-(-count // ranks.world) for count in counts]
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    have = 0
    for number, batch in enumerate(views):
        cls, patches = encode(batch)
        generator = torch.Generator().manual_seed(derive(seed, "anchors", ranks.rank, number))
        each = -(-shares[1] // max(1, shares[0]))
        places = torch.rand(patches.shape[:2], generator=generator).argsort(dim=1)[:, :each]
        places = places.to(patches.device)[..., None].expand(-1, -1, patches.shape[-1])
        found[0].append(cls.float())
        found[1].append(patches.gather(1, places).flatten(0, 1).float())
        have += len(cls)
        if have >= shares[0] and sum(map(len, found[1])) >= shares[1]:
            break
    cls, patches = (
        _of_all(torch.cat(tokens)[:share], ranks)[:count]
        for tokens, share, count in zip(found, shares, counts, strict=True)
    )
    return cls, patches


def _of_all(own: Float[Tensor, "k d"], ranks: Ranks) -> Float[Tensor, "all d"]:
    """Return the tokens of all processes, the first one's first."""
    spread = own.new_zeros(ranks.world, *own.shape)
    spread[ranks.rank] = own
    return sum_over_ranks(spread).flatten(0, 1)
