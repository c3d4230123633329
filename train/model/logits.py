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

    def whole(self) -> Float[Tensor, "n k"]:
        """Return all logits, for a few rows."""
        return self.vectors @ self.prototypes.mT

    def split(self, rows: Sequence[int]) -> list[Logits]:
        """Return the logits of so many rows each, which share their prototypes."""
        return [self._replace(vectors=vectors) for vectors in self.vectors.split(list(rows))]


def product_of(vectors: Float[Tensor, "n d"], prototypes: Float[Tensor, "k d"]) -> Logits:
    """Return the logits of both in the precision that autocast has for products."""
    kind = vectors.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        return Logits(vectors.to(dtype), prototypes.to(dtype))
    return Logits(vectors, prototypes)
