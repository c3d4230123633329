"""Losses of groups of images that lie on several processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from train.distributed.ranks import from_all_ranks


def of_whole_groups(
    loss: Callable[[Float[Tensor, "views all d"]], Float[Tensor, ""]],
    features: Float[Tensor, "views n d"],
    group_size: int,
) -> Float[Tensor, ""]:
    """Return `loss`, a mean over groups of consecutive images, of this process's features.

    Where a process cuts a group, all processes' features are gathered, in the order of ranks, and
    the value is the loss of all of them. Only this process's own lead back to its network; as every
    process computes the same loss, the gradient is multiplied by their number, so that the mean of
    it over the processes, which is what they take a step by, is that of one process.
    Every process must call it with as many images.
    """
    if features.shape[1] % group_size == 0:
        return loss(features)
    parts, own = from_all_ranks(features.detach())
    parts[own] = features
    value = loss(torch.cat(parts, dim=1))
    return value.detach() + len(parts) * (value - value.detach())
