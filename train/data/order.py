"""The order in which samples are trained on: a function of seed and epoch, cut into steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.errors import LvdError
from train.seeds import derive

_KEPT = 3


class Order:
    """A permutation of all samples for each epoch, of which whole global batches are taken.

    Parts are shuffled and cut in windows of `window`, and samples are shuffled inside a window, so
    that only so many shards are being read at a time. An epoch's last, partial batch is left out;
    it is another one in each epoch. Only the windows that a batch lies in are ever worked out: 8
    bytes for each of their samples, whatever the size of the dataset.
    """

    def __init__(
        self, sizes: Sequence[int] | NDArray[np.int64], *, batch_size: int, window: int, seed: int
    ) -> None:
        """Take the number of samples of each part; samples are numbered part after part.

        Raises LvdError where there are fewer samples than one batch.
        """
        self.batch_size = batch_size
        self.batches_per_epoch = int(np.sum(sizes)) // batch_size
        if not self.batches_per_epoch:
            raise LvdError(
                f"{int(np.sum(sizes))} images are fewer than one batch of {batch_size}: set "
                "batch_size to at most that many, or name shards with more images"
            )
        self._sizes = np.asarray(sizes, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._window = window
        self._seed = seed
        self._plans: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._windows: dict[tuple[int, int], NDArray[np.int64]] = {}

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the epoch's permutation of all samples."""
        return self._places(epoch, 0, int(self._sizes.sum()))

    def batch(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """Return (epoch, sample numbers [batch_size]) of an optimiser step, counted from 0."""
        epoch, number = divmod(step, self.batches_per_epoch)
        start = number * self.batch_size
        return epoch, self._places(epoch, start, start + self.batch_size)

    def _places(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        _, bounds = self._plan(epoch)
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds, stop, side="left"))
        return np.concatenate(
            [
                self._shuffled(epoch, window)[
                    max(0, start - bounds[window]) : stop - bounds[window]
                ]
                for window in range(first, last)
            ]
        )

    def _plan(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the parts in the epoch's order, and the places where its windows begin and end."""
        if epoch not in self._plans:
            parts = _permutation(len(self._sizes), derive(self._seed, "parts", epoch))
            ends = np.concatenate([[0], np.cumsum(self._sizes[parts])])
            cuts = np.arange(0, len(parts) + self._window, self._window)
            _make_room(self._plans)
            self._plans[epoch] = parts, ends[np.minimum(cuts, len(parts))]
        return self._plans[epoch]

    def _shuffled(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Return the samples of one window in the epoch's order."""
        if (epoch, window) not in self._windows:
            first = window * self._window
            parts = self._plan(epoch)[0][first : first + self._window]
            samples = np.concatenate(
                [np.arange(self._sizes[part]) + self._starts[part] for part in parts]
            )
            places = _permutation(len(samples), derive(self._seed, "window", epoch, window))
            _make_room(self._windows)
            self._windows[epoch, window] = samples[places]
        return self._windows[epoch, window]


def _make_room(kept: dict) -> None:
    while len(kept) >= _KEPT:
        del kept[next(iter(kept))]


def _permutation(count: int, seed: int) -> NDArray[np.int64]:
    # Sorted random bits give the same order with every version of numpy, which promises that of a
    # bit generator's stream but not of `Generator.permutation`.
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
