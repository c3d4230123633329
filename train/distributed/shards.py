"""The part of sharded tensors that a process holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def local_shards(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return this rank's share of each DTensor, sharing its memory, and other tensors as they are."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def whole_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module's state by name, each whole, on its device.

    Every process must go through all of them: what is sharded is gathered, one tensor at a time.
    """
    for name, tensor in module.state_dict().items():
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
