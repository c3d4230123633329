"""What all processes learn of a step in one collective, and the host without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.distributed.ranks import sum_over_ranks


class Agreement:
    """Losses, gradient norms and counts of a step over all processes; a device's until they are read.

    `norms_there` (float64 []) and `skipped_there` (bool []) lie on the device, for what the step
    still has to do there. The properties are the host's: the first one that is read waits for the
    device, up to where `fetch` was called, or else for all that it has been given.
    """

    def __init__(self, summed: Float[Tensor, " k"], names: Mapping[str, list[str]]) -> None:
        self._summed, self._names = summed, names
        losses, norms = len(names["losses"]), len(names["norms"])
        roots = summed[losses : losses + norms].sqrt()
        self.norms_there: dict[str, Float[Tensor, ""]] = dict(
            zip(names["norms"], roots.unbind(), strict=True)
        )
        self.skipped_there: Bool[Tensor, ""] = ~summed[: losses + norms].isfinite().all()
        self._copied: torch.cuda.Event | None = None

    def fetch(self) -> None:
        """Start to copy the figures to the host, behind what the device has been given so far."""
        if self._summed.is_cuda:
            host = torch.empty(self._summed.shape, dtype=self._summed.dtype, pin_memory=True)
            self._summed = host.copy_(self._summed, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    @property
    def losses(self) -> dict[str, float]:
        """The means over all processes."""
        return self._read["losses"]

    @property
    def norms(self) -> dict[str, float]:
        """The L2 norms of gradients."""
        return {name: math.sqrt(square) for name, square in self._read["norms"].items()}

    @property
    def counts(self) -> dict[str, float]:
        """The sums over all processes."""
        return self._read["counts"]

    @property
    def skipped(self) -> bool:
        """Whether a loss or a norm is not finite, on every process if on one."""
        return not all(map(math.isfinite, (*self.losses.values(), *self._read["norms"].values())))

    @cached_property
    def _read(self) -> dict[str, dict[str, float]]:
        if self._copied is not None:
            self._copied.synchronize()
        values = iter(self._summed.cpu().tolist())
        return {kind: {name: next(values) for name in of} for kind, of in self._names.items()}


@torch.no_grad()
def agree(
    losses: Mapping[str, Tensor],
    squares: Mapping[str, Tensor],
    counts: Mapping[str, float],
    world: int,
) -> Agreement:
    """Return the mean losses, the norms and the summed counts of all processes: one collective.

    Every process must call it with the same names. `losses` are a process's means, `squares` its
    parts of squared norms, both [] on its device; float64 from here on, in which counts are exact.
    Nothing waits for the device.
    """
    like = next(iter(losses.values()))
    own = [
        *(loss.double() / world for loss in losses.values()),
        *(square.double() for square in squares.values()),
        *(like.new_full((), count, dtype=torch.float64) for count in counts.values()),
    ]
    names = {"losses": list(losses), "norms": list(squares), "counts": list(counts)}
    return Agreement(sum_over_ranks(torch.stack(own)), names)
