"""Makes targets that do not collapse of teacher logits: Sinkhorn-Knopp, or a centre and a softmax."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from train.distributed.ranks import max_over_ranks, sum_over_ranks
from train.model.logits import Logits
from train.objectives.settings import CenteringSettings
from train.objectives.targets import ExpRows, SoftmaxRows, Targets, softmax_
from train.objectives.tiles import (
    are_close,
    are_kept,
    block_rows,
    blocks,
    log_normalisers,
    softmax_blocks,
    tile_rows,
    tiles,
    working_dtype,
)

Shares = Tensor | ExpRows | SoftmaxRows
"""Rows over prototypes of which a scaling makes targets: kept, or as how they are made."""


class Centering(nn.Module, ABC):
    """What makes targets of the teacher's logits; its buffers are its state."""

    @abstractmethod
    def targets(self, chunks: Sequence[Logits], temperature: float) -> list[Targets]:
        """Return the targets of each chunk (micro-batch) of this process's logits.

        The chunks of all processes are centred as one batch: every process must call it, with the
        same prototypes but any number of rows, none included. Logits that are few are kept; of many
        there is a tile at a time, and they are computed anew each time the targets are read.
        """

    def update(self, skipped: Bool[Tensor, ""] | None = None) -> None:
        """Take the batch that `targets` saw last into the state, unless its step was `skipped`."""


def build_centering(settings: CenteringSettings, prototypes: int) -> Centering:
    """Return the centering that the settings name, for logits over so many prototypes."""
    if settings.kind == "sinkhorn":
        return SinkhornKnopp(settings.iterations)
    return EmaCentre(prototypes, settings.momentum)


class SinkhornKnopp(Centering):
    """Targets that use all prototypes equally in each batch; stateless.

    SwAV (arXiv 2006.09882, section 3.1 and the listing of its appendix A), as in DINOv2, on the
    logits l of all B rows of the batch over K prototypes:

        Q = exp(l / temperature);  Q /= sum of Q
        repeat `iterations` times:
            Q /= K * sum over rows of Q             # each prototype's sum becomes 1/K
            Q /= B * sum over prototypes of Q       # each row's sum becomes 1/B
        targets = B * Q
    """

    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations

    @torch.no_grad()
    def targets(self, chunks: Sequence[Logits], temperature: float) -> list[Targets]:
        """Return the targets of each chunk, as `Centering.targets`.

        Every Q of the iteration is the first one with its rows and its prototypes scaled, so only
        the scales are kept: Q = diag(v) S diag(u). Where the logits `are_close`, S is
        exp(l / temperature); elsewhere the softmax over prototypes of (l - highest) / temperature,
        with `highest` each prototype's largest logit. Up to factors that all entries share, and
        that the next division removes (the total, K and B are such):

            v = 1, or normalisers of that softmax
            repeat `iterations` times:
                u = 1 / (v S)           # the one sum over rows, and so over processes
                v = 1 / (S u)           # the last of these divides the targets by their row sums

        No exponential overflows and no sum underflows, whatever the logits; a block of S is read
        once for both products. Where S is not kept, that is one product of vectors and prototypes
        more for `highest`, if there is one, for each repetition and for the targets.
        """
        with torch.autocast(chunks[0].vectors.device.type, enabled=False):
            if all(are_close(chunk, temperature) for chunk in chunks):
                shares = _exponentials(chunks, temperature)
                sums = _zeros(chunks)
                for block in _blocks(shares):
                    sums.addmv_(block.T, block.new_ones(len(block)))
            else:
                kept = _kept(chunks)
                highest = _highest(chunks, kept)
                sums = _first_sums(chunks, kept, highest, temperature)
                shares = _shares(chunks, kept, highest, temperature)
            for _ in range(self.iterations - 1):
                scales, sums = 1 / sum_over_ranks(sums), torch.zeros_like(sums)
                for block in _blocks(shares):
                    sums.addmv_(block.T, 1 / (block @ scales))
        scales = 1 / sum_over_ranks(sums)
        return [Targets(share, scales) for share in shares]


class EmaCentre(Centering):
    """Targets by a running centre and a sharp softmax; the centre [K] is its state.

    DINO (arXiv 2104.14294, eq. 4):

        targets = softmax((l - centre) / temperature)
        centre  = momentum * centre + (1 - momentum) * mean over all rows of l    # by update()
    """

    centre: Float[Tensor, " K"]

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(prototypes))
        self._mean: Tensor | None = None

    @torch.no_grad()
    def targets(self, chunks: Sequence[Logits], temperature: float) -> list[Targets]:
        """Return the targets of each chunk, as `Centering.targets`; the centre moves by `update`."""
        centre, ones = self.centre.clone(), torch.ones_like(self.centre)
        total = centre.new_full((), sum(len(chunk.vectors) for chunk in chunks))
        with torch.autocast(centre.device.type, enabled=False):
            # A sum of logits is the logit of a sum.
            sums = torch.zeros_like(centre)
            for vectors, prototypes, _ in chunks:
                sums += prototypes.to(centre.dtype) @ vectors.to(centre.dtype).sum(dim=0)
            kept = _kept(chunks)
            for whole in kept:
                if whole is not None:
                    softmax_(whole, centre, temperature)
        sum_over_ranks(sums)
        sum_over_ranks(total)
        # Without a single row there is nothing to learn of: the centre stays.
        self._mean = torch.where(total > 0, sums / total.clamp(min=1), centre)
        return [Targets(share, ones) for share in _shares(chunks, kept, centre, temperature)]

    @torch.no_grad()
    def update(self, skipped: Bool[Tensor, ""] | None = None) -> None:
        """Move the centre towards the mean of the batch that `targets` saw last, unless `skipped`."""
        if self._mean is not None:
            moved = self.centre.lerp(self._mean, 1 - self.momentum)
            # Chosen, not weighted by 0: the mean of a batch that is skipped may be no number.
            self.centre.copy_(moved if skipped is None else moved.where(~skipped, self.centre))
            self._mean = None


def _keep(chunks: Sequence[Logits]) -> bool:
    """Return whether the logits of all chunks are few enough to be kept."""
    prototypes = chunks[0].prototypes
    rows = sum(len(chunk.vectors) for chunk in chunks)
    return are_kept(rows, len(prototypes), prototypes.device)


def _kept(chunks: Sequence[Logits]) -> list[Tensor | None]:
    """Return the logits of each chunk where those of all are few enough to be kept, else None."""
    keep = _keep(chunks)
    return [chunk.whole() if keep else None for chunk in chunks]


def _exponentials(chunks: Sequence[Logits], temperature: float) -> list[Shares]:
    """Return exp(l / temperature) of each chunk, kept or as how they are made."""
    rows = [ExpRows(chunk, temperature) for chunk in chunks]
    return [some[:] for some in rows] if _keep(chunks) else [*rows]


def _zeros(chunks: Sequence[Logits]) -> Float[Tensor, " K"]:
    prototypes = chunks[0].prototypes
    return prototypes.new_zeros(len(prototypes), dtype=working_dtype(prototypes))


def _highest(chunks: Sequence[Logits], kept: Sequence[Tensor | None]) -> Float[Tensor, " K"]:
    """Return each prototype's largest logit of all chunks and processes."""
    highest = _zeros(chunks).fill_(-torch.inf)
    for chunk, whole in zip(chunks, kept, strict=True):
        for tile in tiles(chunk) if whole is None else [whole]:
            if len(tile):
                torch.maximum(highest, tile.amax(dim=0), out=highest)
    return max_over_ranks(highest)


def _first_sums(
    chunks: Sequence[Logits],
    kept: Sequence[Tensor | None],
    highest: Float[Tensor, " K"],
    temperature: float,
) -> Float[Tensor, " K"]:
    """Return the sums over rows of exp((l - highest) / temperature); what is kept becomes shares."""
    sums = _zeros(chunks)
    for chunk, whole in zip(chunks, kept, strict=True):
        for tile in tiles(chunk) if whole is None else [whole]:
            for rows, scaled, share in softmax_blocks(tile, highest, temperature):
                sums.addmv_(share.T, log_normalisers(scaled, share)[:, 0].exp())
                if whole is not None:
                    whole[rows] = share
    return sums


def _shares(
    chunks: Sequence[Logits],
    kept: Sequence[Tensor | None],
    offsets: Float[Tensor, " K"],
    temperature: float,
) -> list[Shares]:
    """Return the shares of each chunk: what was kept, or how they are made."""
    return [
        SoftmaxRows(chunk, temperature, offsets) if whole is None else whole
        for chunk, whole in zip(chunks, kept, strict=True)
    ]


def _blocks(shares: Sequence[Shares]) -> Iterator[Float[Tensor, "r K"]]:
    """Yield all rows of shares, a block at a time: to be read, before the next one overwrites it."""
    for share in shares:
        if isinstance(share, Tensor):
            yield from _blocks_of(share)
            continue
        prototypes = share.logits.prototypes
        for rows in blocks(range(len(share)), tile_rows(len(prototypes), prototypes.device)):
            yield from _blocks_of(share[rows])


def _blocks_of(share: Float[Tensor, "b K"]) -> Iterator[Float[Tensor, "r K"]]:
    most = min(len(share), block_rows(share.shape[1], share.device))
    wide = working_dtype(share)
    buffer = share.new_empty((0 if share.dtype == wide else most, share.shape[1]), dtype=wide)
    for rows in blocks(range(len(share)), max(1, most)):
        some = share[rows]
        yield some if share.dtype == wide else buffer[: len(some)].copy_(some)
