"""The part of sharded tensors that a process holds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.distributed.tensor import DTensor


def local_shards(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return this rank's share of each DTensor, sharing its memory, and other tensors as they are."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
