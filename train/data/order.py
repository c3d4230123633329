"""The order in which samples are trained on: a function of seed and epoch, cut into steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import LvdError
from train.seeds import derive

UNIT_BITS = 20
UNIT = 1 << UNIT_BITS
"""A weight of 1: weights are whole numbers of this unit, so that their sums are exact."""
_REPEAT = 1 << 32
_KEPT = 3


class Places(NamedTuple):
    """Samples in the order in which they are drawn, and for each the turn that it is drawn in.

    A sample's turn is the epoch, and another number each time that it comes again in one epoch: what
    is drawn for sample and turn is never drawn twice.
    """

    samples: NDArray[np.int64]
    turns: NDArray[np.int64]


class GlobalBatch(NamedTuple):
    """The samples [batch_size] of an optimiser step, and their turns."""

    epoch: int
    samples: NDArray[np.int64]
    turns: NDArray[np.int64]


class Weights(Protocol):
    """How often samples are drawn in an epoch, in units of 1 / `UNIT`."""

    totals: NDArray[np.int64]
    """[parts] what the weights of each part's samples add up to."""

    def of_part(self, part: int) -> NDArray[np.int64]:
        """Return the weight of each sample of a part."""


class Order:
    """A permutation of all samples for each epoch, of which whole global batches are taken.

    Parts are shuffled and cut in windows of `window`, and samples are shuffled inside a window, so
    that only so many shards are being read at a time. An epoch's last, partial batch is left out;
    it is another one in each epoch. Only the windows that a batch lies in are ever worked out: 16
    bytes for each of their samples, whatever the size of the dataset.

    With `weights` a sample of weight w stands in an epoch floor(w) times or once more, as an offset
    that is drawn for the epoch decides (systematic sampling; Madow, 1949): w times in expectation.
    """

    def __init__(
        self,
        sizes: Sequence[int] | NDArray[np.int64],
        *,
        batch_size: int,
        window: int,
        seed: int,
        weights: Weights | None = None,
    ) -> None:
        """Take the number of samples of each part; samples are numbered part after part.

        Raises LvdError where an epoch has fewer samples than one batch.
        """
        self._sizes = np.asarray(sizes, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._weights = weights
        totals = self._sizes * UNIT if weights is None else weights.totals
        self._line = np.concatenate([[0], np.cumsum(totals)])
        self.images = int(self._line[-1]) >> UNIT_BITS
        """Places of an epoch, without the one that some epochs have more."""
        self.batch_size = batch_size
        self.batches_per_epoch = self.images // batch_size
        if not self.batches_per_epoch:
            raise LvdError(
                f"{self.images} images are fewer than one batch of {batch_size}: set "
                "batch_size to at most that many, or name shards with more images"
            )
        self._window = window
        self._seed = seed
        self._plans: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._windows: dict[tuple[int, int], Places] = {}

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the samples of an epoch: without weights, a permutation of all."""
        return self._places(epoch, 0, int(self._plan(epoch)[1][-1])).samples

    def batch(self, step: int) -> GlobalBatch:
        """Return the global batch of an optimiser step, counted from 0."""
        epoch, number = divmod(step, self.batches_per_epoch)
        start = number * self.batch_size
        return GlobalBatch(epoch, *self._places(epoch, start, start + self.batch_size))

    def take(self, start: int, stop: int) -> Places:
        """Return the places from `start` to `stop` where epochs of `images` follow one another."""
        taken = [Places(np.empty(0, np.int64), np.empty(0, np.int64))]
        while start < stop:
            epoch, first = divmod(start, self.images)
            last = min(first + stop - start, self.images)
            taken.append(self._places(epoch, first, last))
            start += last - first
        return _joined(taken)

    def _places(self, epoch: int, start: int, stop: int) -> Places:
        _, bounds = self._plan(epoch)
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        last = int(np.searchsorted(bounds, stop, side="left"))
        return _joined(
            [
                Places(
                    *(
                        values[max(0, start - bounds[window]) : stop - bounds[window]]
                        for values in self._shuffled(epoch, window)
                    )
                )
                for window in range(first, last)
            ]
        )

    def _plan(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the parts in the epoch's order, and the places where its windows begin and end."""
        if epoch not in self._plans:
            parts = _permutation(len(self._sizes), derive(self._seed, "parts", epoch))
            counts = np.diff(self._whole(self._line, epoch))
            ends = np.concatenate([[0], np.cumsum(counts[parts])])
            cuts = np.arange(0, len(parts) + self._window, self._window)
            _make_room(self._plans)
            self._plans[epoch] = parts, ends[np.minimum(cuts, len(parts))]
        return self._plans[epoch]

    def _shuffled(self, epoch: int, window: int) -> Places:
        """Return the samples of one window in the epoch's order."""
        if (epoch, window) not in self._windows:
            first = window * self._window
            parts = self._plan(epoch)[0][first : first + self._window].tolist()
            samples, turns = _joined([self._of_part(epoch, part) for part in parts])
            places = _permutation(len(samples), derive(self._seed, "window", epoch, window))
            _make_room(self._windows)
            self._windows[epoch, window] = Places(samples[places], turns[places])
        return self._windows[epoch, window]

    def _of_part(self, epoch: int, part: int) -> Places:
        """Return the samples of a part as often as they stand in the epoch."""
        samples = np.arange(self._sizes[part]) + self._starts[part]
        if self._weights is None:
            return Places(samples, np.full(len(samples), epoch))
        line = self._line[part] + np.concatenate([[0], np.cumsum(self._weights.of_part(part))])
        counts = np.diff(self._whole(line, epoch))
        repeats = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return Places(np.repeat(samples, counts), epoch + repeats * _REPEAT)

    def _whole(self, line: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Return how many places of the epoch lie before each point of the line of all weights."""
        return (line + derive(self._seed, "weights", epoch) % UNIT) >> UNIT_BITS


def permuted(places: Places, seed: int) -> Places:
    """Return the places in an order drawn by `seed`."""
    order = _permutation(len(places.samples), seed)
    return Places(places.samples[order], places.turns[order])


def _joined(places: Sequence[Places]) -> Places:
    return Places(*(np.concatenate(values) for values in zip(*places, strict=True)))


def _make_room(kept: dict[Any, Any]) -> None:
    while len(kept) >= _KEPT:
        del kept[next(iter(kept))]


def _permutation(count: int, seed: int) -> NDArray[np.int64]:
    # Sorted random bits give the same order with every version of numpy, which promises that of a
    # bit generator's stream but not of `Generator.permutation`.
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable")
