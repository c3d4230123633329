"""Scores features by a linear classifier that is fitted in one pass: ridge regression onto the classes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from train.distributed.ranks import sum_over_ranks

RIDGE = 1e-2
"""Penalty, as a share of the mean variance of a feature. Fixed, so that nothing is chosen on the
tested images."""

_ROWS = 8192


@torch.no_grad()
def linear_score(
    bank: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    queries: Float[Tensor, "q d"],
    answers: Int[Tensor, " q"],
    classes: int,
) -> float:
    """Return the share of queries named rightly; NaN where features are not finite, or none is there.

    Every process must call it, with its own share of the bank and all queries. On rows x of unit
    length, y their classes as rows of 0 and 1, means taken off both:

        W = (mean of x' x + penalty)^-1 mean of x' y        # penalty = RIDGE * mean variance
        class = argmax of (query - mean of x) W + mean of y

    in float64. It costs one product of the bank with itself, sends d (d + classes) numbers, and has
    no learning rate: beside k-NN it says what a line can tell apart, and is not the probe of
    `lvd-train eval linear`, which is trained.
    """
    dim = bank.shape[1]
    products = bank.new_zeros(dim, dim + classes, dtype=torch.float64)
    sums = bank.new_zeros(dim + classes + 1, dtype=torch.float64)
    for rows, names in zip(bank.split(_ROWS), labels.split(_ROWS), strict=True):
        x = functional.normalize(rows.double(), dim=1)
        both = torch.cat([x, functional.one_hot(names, classes).double()], dim=1)
        products += x.T @ both
        sums += functional.pad(both.sum(dim=0), (0, 1), value=len(x))
    sum_over_ranks(products)
    sum_over_ranks(sums)
    means = sums[:-1] / sums[-1]
    moments = products / sums[-1] - means[:dim, None] * means
    if not (len(queries) and moments.isfinite().all() and queries.isfinite().all()):
        return math.nan
    penalty = (RIDGE * moments.diagonal().mean()).clamp(min=torch.finfo(torch.float64).tiny)
    moments.diagonal().add_(penalty)
    weights = torch.linalg.solve(moments[:, :dim], moments[:, dim:])
    scores = (functional.normalize(queries.double(), dim=1) - means[:dim]) @ weights + means[dim:]
    return (scores.argmax(dim=1) == answers).double().mean().item()
