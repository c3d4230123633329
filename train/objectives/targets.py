"""What a teacher asks of its students: distributions over prototypes, a tile of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from train.model.logits import Logits
from train.objectives.tiles import block_rows, blocks, softmax_blocks, tile_rows, working_dtype


@dataclass(frozen=True)
class _MadeRows:
    """Rows over prototypes that are made of logits when read."""

    logits: Logits
    temperature: float

    def __len__(self) -> int:
        return len(self.logits.vectors)

    def _some(self, rows: slice) -> Logits:
        return self.logits._replace(vectors=self.logits.vectors[rows])


@dataclass(frozen=True)
class ExpRows(_MadeRows):
    """exp(logits / temperature) of logits that `are_close`."""

    @torch.no_grad()
    def __getitem__(self, rows: slice) -> Float[Tensor, "r K"]:
        """Return some rows, in the precision of the logits."""
        return self._some(rows).whole(1 / self.temperature).exp_()


@dataclass(frozen=True)
class SoftmaxRows(_MadeRows):
    """softmax((logits - offsets) / temperature) over prototypes."""

    offsets: Float[Tensor, " K"]

    @torch.no_grad()
    def __getitem__(self, rows: slice) -> Float[Tensor, "r K"]:
        """Return some rows, in the precision of the logits."""
        return softmax_(self._some(rows).whole(), self.offsets, self.temperature)


@dataclass(frozen=True)
class Targets:
    """A teacher's distributions over prototypes: the rows of shares * scales, divided by their sums.

    Shares have the precision of the teacher's logits, whose rounding moves a probability far more
    than theirs; float32 probabilities exist for a block of rows at a time.
    """

    shares: Float[Tensor, "b K"] | ExpRows | SoftmaxRows
    scales: Float[Tensor, " K"]

    def __len__(self) -> int:
        return len(self.shares)

    def tile(self, rows: slice) -> Targets:
        """Return the targets of some rows, with shares that are at hand."""
        return Targets(self.shares[rows], self.scales)

    def write(self, rows: slice, out: Tensor, total: Tensor | float = 1.0) -> None:
        """Write the probabilities of some rows, times `total` [r, 1], to `out` [r, K]."""
        shares = self.shares[rows]
        if shares.dtype != out.dtype:  # a product of both would convert them in memory of its own
            shares = out.copy_(shares)
        torch.mul(shares, self.scales, out=out)
        out.mul_(total / out.sum(dim=-1, keepdim=True))

    def probabilities(self, rows: slice = slice(None)) -> Float[Tensor, "r K"]:
        """Return the probabilities of some rows, in float32 (float64 of float64 shares)."""
        shares = self.shares[rows]
        out = torch.empty_like(shares, dtype=working_dtype(shares))
        Targets(shares, self.scales).write(slice(None), out)
        return out

    def blocks(self) -> Iterator[Float[Tensor, "r K"]]:
        """Yield the probabilities of all rows in their order, a block of them at a time."""
        prototypes, device = len(self.scales), self.scales.device
        for tile in blocks(range(len(self)), tile_rows(prototypes, device)):
            at_hand = self.tile(tile)
            for rows in blocks(range(len(at_hand)), block_rows(prototypes, device)):
                yield at_hand.probabilities(rows)


def softmax_(
    tile: Float[Tensor, "t K"], offsets: Float[Tensor, " K"], temperature: float
) -> Float[Tensor, "t K"]:
    """Return `tile` after replacing it by the softmax of (tile - offsets) / temperature."""
    for rows, _, shares in softmax_blocks(tile, offsets, temperature):
        tile[rows] = shares
    return tile
