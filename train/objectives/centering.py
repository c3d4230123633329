"""Makes targets that do not collapse of teacher logits: Sinkhorn-Knopp, or a centre and a softmax."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from train.distributed.ranks import max_over_ranks, sum_over_ranks
from train.objectives.cross_entropy import Targets, block_rows, blocks, working_dtype
from train.objectives.settings import CenteringSettings


class Centering(nn.Module, ABC):
    """What makes targets of the teacher's logits; its buffers are its state."""

    @abstractmethod
    def targets(
        self, chunks: Sequence[Float[Tensor, "b_i K"]], temperature: float
    ) -> list[Targets]:
        """Return the targets of each chunk (micro-batch) of this process's logits.

        The chunks of all processes are centred as one batch: every process must call it, with as
        many prototypes but any number of rows, none included.
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
    def targets(
        self, chunks: Sequence[Float[Tensor, "b_i K"]], temperature: float
    ) -> list[Targets]:
        """Return the targets of each chunk, as `Centering.targets`.

        Every Q of the iteration is the first one with its rows and its prototypes scaled, so only
        the scales are kept: Q = diag(v) S diag(u), with S the softmax over prototypes of
        (l - highest) / temperature, and `highest` each prototype's largest logit. Up to factors
        that all entries share, and that the next division removes (the total, K and B are such):

            v = normalisers of that softmax
            repeat `iterations` times:
                u = 1 / (v S)           # the one sum over rows, and so over processes
                v = 1 / (S u)           # the last of these divides the targets by their row sums

        No exponential overflows and no sum underflows, whatever the logits; S is made once, and a
        block of it is read once for both products.
        """
        shares = [torch.empty_like(chunk) for chunk in chunks]
        highest = _highest(chunks)
        pieces = [
            (chunk[rows], share[rows])
            for chunk, share in zip(chunks, shares, strict=True)
            for rows in blocks(range(len(chunk)), block_rows(chunk))
        ]
        most = max((len(logits) for logits, _ in pieces), default=0)
        scaled_buffer, block_buffer = highest.new_empty((2, most, len(highest)))
        sums = torch.zeros_like(highest)
        with torch.autocast(highest.device.type, enabled=False):
            for logits, share in pieces:
                scaled, block = scaled_buffer[: len(logits)], block_buffer[: len(logits)]
                torch.sub(logits, highest, out=scaled).mul_(1 / temperature)
                torch.softmax(scaled, dim=1, out=block)
                # The largest probability is exp(top) / normaliser.
                sums.addmv_(block.T, scaled.amax(dim=1).exp() / block.amax(dim=1))
                share.copy_(block)
            for _ in range(self.iterations - 1):
                scales, sums = 1 / sum_over_ranks(sums), torch.zeros_like(sums)
                for _, share in pieces:
                    block = block_buffer[: len(share)].copy_(share)
                    sums.addmv_(block.T, 1 / (block @ scales))
        scales = 1 / sum_over_ranks(sums)
        return [Targets(share, scales) for share in shares]


class EmaCentre(Centering):
    """Targets by a running centre and a sharp softmax; the centre [K] is its state.

    DINO (arXiv 2104.14294, eq. 4):

        targets = softmax((l - centre) / temperature)
        centre  = momentum * centre + (1 - momentum) * mean over all rows of l    # by update()
    """

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(prototypes))
        self._mean: Tensor | None = None

    @torch.no_grad()
    def targets(
        self, chunks: Sequence[Float[Tensor, "b_i K"]], temperature: float
    ) -> list[Targets]:
        """Return the targets of each chunk, as `Centering.targets`; the centre moves by `update`."""
        sums = torch.zeros_like(self.centre)
        total = self.centre.new_full((), sum(map(len, chunks)))
        ones = torch.ones_like(self.centre)
        targets = []
        for chunk in chunks:
            shares = torch.empty_like(chunk)
            for rows in blocks(range(len(chunk)), block_rows(chunk)):
                centred = chunk[rows] - self.centre
                sums += centred.sum(dim=0)
                shares[rows] = centred.mul_(1 / temperature).softmax(dim=1)
            targets.append(Targets(shares, ones))
        sum_over_ranks(sums)
        sum_over_ranks(total)
        # Without a single row there is nothing to learn of: the centre stays.
        self._mean = self.centre + sums / total.clamp(min=1)
        return targets

    @torch.no_grad()
    def update(self, skipped: Bool[Tensor, ""] | None = None) -> None:
        """Move the centre towards the mean of the batch that `targets` saw last, unless `skipped`."""
        if self._mean is not None:
            moved = self.centre.lerp(self._mean, 1 - self.momentum)
            # Chosen, not weighted by 0: the mean of a batch that is skipped may be no number.
            self.centre.copy_(moved if skipped is None else moved.where(~skipped, self.centre))
            self._mean = None


def _highest(chunks: Sequence[Float[Tensor, "b_i K"]]) -> Float[Tensor, " K"]:
    """Return each prototype's largest logit of all chunks and processes."""
    first = chunks[0]
    highest = first.new_full((first.shape[1],), -torch.inf, dtype=working_dtype(first))
    for chunk in chunks:
        if len(chunk):
            torch.maximum(highest, chunk.amax(dim=0), out=highest)
    return max_over_ranks(highest)
