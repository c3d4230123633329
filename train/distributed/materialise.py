"""Gives sharded networks on the device `meta` their memory and values, each process its share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from train.distributed.shards import local_shards
from train.model.deferred import Values


@torch.no_grad()
def fill(network: nn.Module, values: Values) -> None:
    """Put this process's share of each value into the parameter of its name.

    Memory: one whole tensor at a time, where `values` hold none. No process asks another.
    """
    for name, parameter in network.named_parameters():
        if name in values:
            own: Tensor = parameter  # FSDP makes DTensors of parameters
            if not isinstance(own, DTensor):
                raise TypeError(f"{name} is not sharded")
            whole = values[name]().to(own.dtype)
            share = distribute_tensor(whole, own.device_mesh, own.placements, src_data_rank=None)
            own.to_local().copy_(share.to_local())


@torch.no_grad()
def copy_shares(source: nn.Module, network: nn.Module) -> None:
    """Copy the parameters of `source` into a network of the same shape on the same mesh."""
    ours, theirs = (local_shards(list(n.parameters())) for n in (network, source))
    torch._foreach_copy_(ours, theirs)
