"""Several datasets as one: the images of each are numbered behind those of the one before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float16, Int64

from curate.catalogue.collection import Collection, Numbers


@dataclass(frozen=True)
class Several:
    """The crawl, whose numbers are its own, and datasets behind it."""

    collections: tuple[Collection, ...]

    @cached_property
    def starts(self) -> Int64[np.ndarray, " sets"]:
        """The number of the first image of each dataset."""
        return np.cumsum([0, *map(len, self.collections[:-1])])

    def vectors(self, numbers: Numbers) -> Float16[np.ndarray, "n d"]:
        """Return the stored vectors of images."""
        result = np.empty((len(numbers), self.collections[0].dim), np.float16)
        for place, where, own in self._rows(numbers):
            result[where] = self.collections[place].vectors(own)
        return result

    def find(self, number: int) -> tuple[int, str]:
        """Return the dataset of an image, and its key there."""
        [(place, _, own)] = self._rows(np.array([number]))
        return place, self.collections[place].keys(own)[0]

    def _rows(self, numbers: Numbers) -> Iterator[tuple[int, Numbers, Numbers]]:
        """Yield each dataset with the places in `numbers` that name it, and its own numbers there."""
        of = np.searchsorted(self.starts, numbers, side="right") - 1
        for place in np.unique(of).tolist():
            where = np.flatnonzero(of == place)
            yield place, where, numbers[where] - self.starts[place]
