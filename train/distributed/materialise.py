"""Gives sharded networks on the device `meta` their memory and values, each process its share."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import distribute_tensor

from train.distributed.shards import local_shards
from train.model.deferred import Values


@torch.no_grad()
def fill(network: nn.Module, values: Values) -> None:
    """Put this process's share of each value into the parameter of its name.

    Memory: one whole tensor at a time, where `values` hold none. No process asks another.
    """
    for name, parameter in network.named_parameters():
        if name in values:
            whole = values[name]().to(parameter.dtype)
            placed = parameter.device_mesh, parameter.placements
            share = distribute_tensor(whole, *placed, src_data_rank=None)
            parameter.to_local().copy_(share.to_local())


@torch.no_grad()
def copy_shares(source: nn.Module, network: nn.Module) -> None:
    """Copy the parameters of `source` into a network of the same shape on the same mesh."""
    ours, theirs = (local_shards(list(n.parameters())) for n in (network, source))
    torch._foreach_copy_(ours, theirs)
