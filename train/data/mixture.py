"""Several datasets trained on as one: their samples numbered as one, and drawn by ratios."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.errors import LvdError
from shared.pictures.images import ImageError
from train.data.index import SampleIndex
from train.data.order import UNIT, UNIT_BITS, GlobalBatch, Order, Places, permuted
from train.data.settings import MixBatches
from train.seeds import derive

_STEPS = 1 << 14
"""Steps whose shares are drawn together."""


class MixedIndex:
    """The samples of several datasets, numbered dataset after dataset."""

    def __init__(self, sources: Mapping[str, SampleIndex]) -> None:
        """Take the datasets by the names that their keys get in front."""
        self.sources = dict(sources)
        digest = hashlib.blake2b(digest_size=16)
        for name, index in sources.items():
            digest.update(f"{name}\0{index.fingerprint}\0".encode())
        self.fingerprint = digest.hexdigest()
        self._ends = np.cumsum([len(index) for index in sources.values()])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def key(self, number: int) -> str:
        """Return the key of a sample, behind the name of its dataset."""
        name, own = self._find(number)
        return f"{name}: {self.sources[name].key(own)}"

    def read(self, number: int) -> bytes:
        """Return a sample's bytes; ImageError with the reason where they are not to be had."""
        name, own = self._find(number)
        return self.sources[name].read(own)

    def read_each(self, numbers: Sequence[int]) -> Iterator[bytes | ImageError]:
        """Yield each sample's bytes or the reason why not."""
        found = [self._find(number) for number in numbers]
        answers = {
            name: index.read_each([own for at, own in found if at == name])
            for name, index in self.sources.items()
        }
        for name, _ in found:
            yield next(answers[name])

    def _find(self, number: int) -> tuple[str, int]:
        place = int(np.searchsorted(self._ends, number, side="right"))
        name = list(self.sources)[place]
        return name, int(number) - int(self._ends[place]) + len(self.sources[name])


class Mixture:
    """The global batches of several datasets, each of which follows an order and epochs of its own.

    `mixed`: of ratio r a batch of B has floor(B r) or ceil(B r) images, at places drawn by step.
    `homogeneous`: all of a step is of one dataset, of this one with probability r, as a tenth of
    DINOv3's steps is ImageNet-1k (arXiv 2508.10104). Both are systematic sampling by an offset that
    is drawn for the step, so what is expected is r exactly. An epoch is as many steps as all datasets
    together have images for. Takes a count for each step up to the one asked for, once.
    """

    def __init__(
        self,
        sources: Mapping[str, tuple[Order, int]],
        ratios: Sequence[float],
        *,
        batch_size: int,
        batches: MixBatches,
        seed: int,
    ) -> None:
        """Take by name the order and the number of samples of each dataset, and their ratios.

        Raises LvdError where a dataset has fewer images than one batch takes of it.
        """
        self.batch_size = batch_size
        self._orders = [order for order, _ in sources.values()]
        sizes = np.array([samples for _, samples in sources.values()], np.int64)
        self._first = np.cumsum(sizes) - sizes
        self._whole = batches == "homogeneous"
        self._seed = seed
        ends = np.rint(np.cumsum(ratios) / np.sum(ratios) * UNIT).astype(np.int64)
        self._line = (1 if self._whole else batch_size) * np.concatenate([[0], ends])
        self.batches_per_epoch = sum(order.images for order in self._orders) // batch_size
        self._refuse_too_small(list(sources))
        self._before = [np.zeros(len(sizes), np.int64)]
        self._block = -1, np.empty((0, 0), np.int64)

    def batch(self, step: int) -> GlobalBatch:
        """Return the global batch of an optimiser step, counted from 0."""
        block, row = divmod(step, _STEPS)
        starts, stops = self._taken(block)[row : row + 2].tolist()
        taken = [
            order.take(start, stop)
            for order, start, stop in zip(self._orders, starts, stops, strict=True)
        ]
        samples = [first + own.samples for first, own in zip(self._first, taken, strict=True)]
        places = Places(np.concatenate(samples), np.concatenate([own.turns for own in taken]))
        if not self._whole:
            places = permuted(places, derive(self._seed, "places", step))
        return GlobalBatch(step // self.batches_per_epoch, *places)

    def _taken(self, block: int) -> NDArray[np.int64]:
        """Return int64 [steps + 1, datasets]: what is taken of each before each step of a block."""
        while len(self._before) <= block:
            drawn = self._drawn(len(self._before) - 1)
            self._before.append(self._before[-1] + drawn.sum(0))
        if self._block[0] != block:
            steps = np.concatenate([self._before[block][None], self._drawn(block)])
            self._block = block, np.cumsum(steps, axis=0)
        return self._block[1]

    def _drawn(self, block: int) -> NDArray[np.int64]:
        """Return int64 [steps, datasets]: the images of each dataset in each step of a block."""
        bits = np.random.PCG64(derive(self._seed, "mix", block)).random_raw(_STEPS)
        offsets = (bits >> np.uint64(64 - UNIT_BITS)).astype(np.int64)
        counts = np.diff((self._line + offsets[:, None]) >> UNIT_BITS, axis=1)
        return counts * (self.batch_size if self._whole else 1)

    def _refuse_too_small(self, names: Sequence[str]) -> None:
        most = self.batch_size if self._whole else -(-np.diff(self._line) // UNIT)
        for name, order, needed in zip(
            names, self._orders, np.broadcast_to(most, len(names)).tolist(), strict=True
        ):
            if order.images < needed:
                raise LvdError(
                    f"data.mix.{name}: {order.images} images are fewer than the {needed} that a "
                    f"batch of {self.batch_size} may take of them: lower batch_size or its ratio, "
                    "or name more images"
                )
