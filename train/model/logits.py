"""Prototype logits as the two matrices whose product they are, a hundredth of their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Logits(NamedTuple):
    """The logits `vectors @ prototypes.T`, which nothing holds as a whole where they are many.

    Both matrices have the precision of that product. A tuple, so that FSDP and DDP find the tensors
    in it.
    """

    vectors: Float[Tensor, "n d"]
    """What a head makes of its tokens, before the prototypes."""
    prototypes: Float[Tensor, "k d"]
    bound: float | None = None
    """What the size of no logit exceeds but by rounding, 1 of cosines; None where that is unknown."""

    def whole(self, scale: float = 1.0) -> Float[Tensor, "n k"]:
        """Return all logits, for a few rows, times `scale`, of which there is one rounding."""
        vectors, prototypes = self.vectors, self.prototypes.mT
        if scale == 1:
            return vectors @ prototypes
        return torch.addmm(vectors.new_zeros(()), vectors, prototypes, beta=0, alpha=scale)

    def split(self, rows: Sequence[int]) -> list[Logits]:
        """Return the logits of so many rows each, which share their prototypes."""
        return [self._replace(vectors=vectors) for vectors in self.vectors.split(list(rows))]


def product_of(
    vectors: Float[Tensor, "n d"], prototypes: Float[Tensor, "k d"], bound: float | None = None
) -> Logits:
    """Return the logits of both in the precision that autocast has for products."""
    kind = vectors.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        vectors, prototypes = vectors.to(dtype), prototypes.to(dtype)
    return Logits(vectors, prototypes, bound)
