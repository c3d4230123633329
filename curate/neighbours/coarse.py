"""Candidates among unit vectors by bfloat16 products, whose error is bounded, on CPUs that have these.

A product of vectors rounded to bfloat16 and added up in float32 is off by no more than what the
rounding took away from either (Cauchy and Schwarz) and what the sums lose. All that may be among the
nearest is proposed, and whoever asks takes the exact cosines of that: no result depends on whether
this was used. Scores are looked at in groups of `GROUP`, by their largest
first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64

WIDTH = 2_048
"""Vectors of the base that are multiplied at a time."""
GROUP = 32
"""Scores whose largest is looked at before them."""
PRODUCTS = 2**23
"""Scores in memory at a time, about: 16 MiB."""
FEWEST_ROWS = 128
"""Queries that are multiplied at a time, at least: with fewer the product is slower."""
CROWDED = 64
"""Groups beyond k with candidates of one query; more are not looked into."""
ROUNDING = 2e-6
"""More than by what the cosines of float32 vectors, rounded and clamped, are off their products."""


class Candidates(NamedTuple):
    """Pairs of rows that are to be looked at, and queries that have too many of these."""

    queries: Int64[np.ndarray, " p"]
    """Rising."""
    rows: Int64[np.ndarray, " p"]
    """Of the base."""
    done: Int64[np.ndarray, " q"]
    """The queries all of whose candidates are among the pairs."""
    crowded: Int64[np.ndarray, " c"]
    """The queries with none there."""
    stop: int
    """Behind the last of the queries."""


class CoarseIndex:
    """Unit vectors in bfloat16: 2 d bytes each, and `PRODUCTS` scores while it is asked."""

    def __init__(self, vectors: Float32[np.ndarray, "m d"], threads: int) -> None:
        self._count, self._dim = vectors.shape
        self._threads = threads
        blocks = -(-self._count // WIDTH)
        self._base = torch.zeros(blocks, WIDTH, self._dim, dtype=torch.bfloat16)
        self._error = 0.0
        for block, start in enumerate(range(0, self._count, WIDTH)):
            rounded, lost = _rounded(vectors[start : start + WIDTH])
            self._base[block, : len(rounded)] = rounded
            self._error = max(self._error, float(lost.max()))

    def nearest(self, asked: Float32[np.ndarray, "n d"], k: int) -> Iterator[Candidates]:
        """Yield, of some unit vectors after others, all that may be among their `k` nearest.

        Ties with the last of these are among them. Needs `GROUP` vectors, or more, for each of the `k`.
        """
        for first, scores, largest, error in self._scores(asked):
            # k groups have a score of so much or more, and so k vectors a product of `least`
            score = largest.topk(k, dim=1, sorted=False).values.amin(1).float()
            least = score - score.abs() * 2**-8 - error
            yield self._chosen(first, scores, largest, least - error, CROWDED + k)

    def _scores(
        self, asked: Float32[np.ndarray, "n d"]
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, Float[torch.Tensor, " r"]]]:
        """Yield the first of some queries, their scores [block, query, place in group, group],
        the largest of each group [query, block and group], and by what products are off at most.
        """
        blocks = len(self._base)
        step = max(FEWEST_ROWS, PRODUCTS // (blocks * WIDTH))
        memory = torch.empty(blocks * min(step, len(asked)) * WIDTH, dtype=torch.bfloat16)
        beyond = self._count - blocks * WIDTH
        for first in range(0, len(asked), step):
            rounded, lost = _rounded(asked[first : first + step])
            shape = blocks, len(rounded), WIDTH
            scores = memory[: blocks * len(rounded) * WIDTH].view(shape)
            with _threads(self._threads):
                for block, out in zip(self._base, scores, strict=True):
                    torch.mm(rounded, block.T, out=out)
                if beyond:
                    scores[-1, :, beyond:] = -torch.inf
                groups = scores.view(*shape[:2], GROUP, WIDTH // GROUP)
                largest = groups.amax(2).transpose(0, 1).flatten(1)
            sums = 2 * self._dim * 2**-24
            yield first, groups, largest, 1.01 * (self._error + lost) + sums + ROUNDING

    def _chosen(
        self,
        first: int,
        scores: torch.Tensor,
        largest: torch.Tensor,
        least: Float[torch.Tensor, " r"],
        most: int,
    ) -> Candidates:
        """Return what scores as products of `least` and more do, where no more than `most` groups do."""
        score = least.bfloat16()[:, None]  # rounding keeps their order
        high = largest >= score
        crowded = high.sum(1) > most
        high[crowded] = False
        query, group = high.nonzero(as_tuple=True)
        block, group = group // (WIDTH // GROUP), group % (WIDTH // GROUP)
        pair, place = (scores[block, query, :, group] >= score[query]).nonzero(as_tuple=True)
        row = block[pair] * WIDTH + place * (WIDTH // GROUP) + group[pair]
        every = np.arange(first, first + len(largest))
        return Candidates(
            query[pair].numpy() + first,
            row.numpy(),
            every[~crowded.numpy()],
            every[crowded.numpy()],
            first + len(largest),
        )


def _rounded(
    vectors: Float32[np.ndarray, "n d"],
) -> tuple[torch.Tensor, Float[torch.Tensor, " n"]]:
    """Return vectors in bfloat16, and the length of what each lost."""
    whole = torch.from_numpy(np.ascontiguousarray(vectors))
    rounded = whole.bfloat16()
    return rounded, (whole - rounded.float()).norm(dim=1)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
