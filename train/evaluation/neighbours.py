"""Nearest neighbours by cosine as blocked matrix products, and their weighted vote."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

QUERY_BLOCK, BANK_BLOCK = 1024, 8192


def neighbours(
    queries: Float[Tensor, "q d"], bank: Float[Tensor, "n d"], k: int
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """Return the cosines of the k most similar rows of `bank`, and which rows they are.

    All n where k is larger. Of equally similar rows the first count, and come first. No matrix is
    larger than a block of queries by a block of the bank, which may be float16 mapped from the disk.
    """
    found = []
    for block in map(_unit, queries.split(QUERY_BLOCK)):
        best = block.new_empty(len(block), 0)
        rows = torch.empty(len(block), 0, dtype=torch.int64, device=block.device)
        for start in range(0, len(bank), BANK_BLOCK):
            cosines = block @ _unit(bank[start : start + BANK_BLOCK]).T
            some, columns = largest(cosines, k)
            # Those found so far stand first, as they do in the bank.
            best, kept = largest(torch.cat([best, some], dim=1), k)
            rows = torch.cat([rows, columns + start], dim=1).gather(1, kept)
        found.append((best, rows))
    cosines_of, rows_of = zip(*found, strict=True)
    return torch.cat(cosines_of), torch.cat(rows_of)


def _unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return functional.normalize(rows.float(), dim=1)


def largest(
    values: Float[Tensor, "rows n"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Return the k largest of each row in falling order, and their columns; all where k > n.

    Of equal values the first count, and come first: `topk` leaves open which it takes.
    """
    top, columns = values.topk(min(k + 1, values.shape[1]), dim=1)
    if top.shape[1] > k:
        tied = (top[:, k - 1] == top[:, k]).nonzero()[:, 0]
        columns = columns[:, :k]
        if len(tied):
            level = values[tied] == top[tied, k - 1, None]
            above = values[tied] > top[tied, k - 1, None]
            room = k - above.sum(dim=1, keepdim=True)
            taken = above | (level & (level.cumsum(dim=1) <= room))
            earlier = torch.arange(taken.shape[1], 0, -1, device=taken.device)
            columns[tied] = (taken * earlier).topk(k, dim=1).indices
    columns = columns.sort(dim=1).values
    top, order = values.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return top, columns.gather(1, order)


def weighted_vote(
    similarities: Float[Tensor, "q k"],
    labels: Int[Tensor, "q k"],
    classes: int,
    temperature: float,
) -> Int[Tensor, " q"]:
    """Return the class to which each query's neighbours give most; of equal ones the lowest.

    A neighbour gives its class exp(cosine / temperature) (Wu et al., arXiv 1805.01978, section
    3.4), here divided by the nearest one's exp, which changes no decision and cannot overflow.
    """
    said = []
    for cosines, of in zip(similarities.split(QUERY_BLOCK), labels.split(QUERY_BLOCK), strict=True):
        weights = ((cosines.double() - cosines[:, :1].double()) / temperature).exp()
        votes = weights.new_zeros(len(of), classes)
        # One neighbour at a time: on a GPU, scattering all at once would add in any order.
        for weight, label in zip(weights.split(1, dim=1), of.split(1, dim=1), strict=True):
            votes.scatter_add_(1, label, weight)
        said.append(votes.argmax(dim=1))
    return torch.cat(said)
