"""Means and deviations of features over the rows that a probe is fitted on."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-6
"""Added to variances, as by MAE's probe."""


def moments(
    blocks: Iterable[Float[Tensor, "n d"]],
) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Return the mean and the standard deviation of each feature over all rows of all blocks.

    Summed in float64, relative to the first row: a feature that never changes has a variance of 0.
    """
    rest = iter(blocks)
    block = next(rest)
    first, count = block[0].double(), 0
    total, squares = torch.zeros_like(first), torch.zeros_like(first)
    for some in chain([block], rest):
        away = some.double() - first
        count += len(some)
        total, squares = total + away.sum(dim=0), squares + away.square().sum(dim=0)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    return (first + mean).float(), torch.sqrt(variance + EPSILON).float()
