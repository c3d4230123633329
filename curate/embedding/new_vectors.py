"""The vectors of a part while they are made: computed in batches, stored in rows."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float16

from curate.catalogue.part_files import LENT, VALID, VECTORS
from curate.embedding.reading import Prepared
from curate.state import Pending, State
from shared.embedders.settings import EmbedderSettings

UNDER_WAY = 2
"""Batches of an embedder that are computed while the next is decoded."""


def to_stored(
    vectors: Float[np.ndarray, "n d"],
) -> tuple[Float16[np.ndarray, "n d"], Bool[np.ndarray, " n"]]:
    """Return vectors as they are stored, and which of them are finite and not zero."""
    stored = np.asarray(vectors, np.float32).astype(np.float16)
    return stored, np.isfinite(stored).all(1) & (stored != 0).any(1)


class NewVectors:
    """The vectors of a part, float16 [n, d] in a file, and which of them are finite and not zero."""

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        self.folder = folder
        self._valid = np.zeros(shape[0], bool)
        self._file: Float16[np.ndarray, "n d"]
        if all(shape):
            self._file = np.lib.format.open_memmap(folder / VECTORS, "w+", np.float16, shape)
        else:  # an empty file cannot be mapped
            self._file = np.empty(shape, np.float16)
            np.save(folder / VECTORS, self._file)

    def put(self, rows: list[int], vectors: Float[np.ndarray, "n d"]) -> None:
        """Store vectors in these rows; what is not finite stays zero."""
        stored, usable = to_stored(vectors)
        places = np.asarray(rows)[usable]
        self._file[places] = stored[usable]
        self._valid[places] = True

    def repeat(self, rows: list[tuple[int, int]]) -> None:
        """Copy into the row of each pair what the first row of the same bytes holds."""
        for row, first in rows:
            self._file[row], self._valid[row] = self._file[first], self._valid[first]

    def lack(self, rows: list[bool]) -> None:
        """Say which rows have no vector of their own here."""
        np.save(self.folder / LENT, np.array(rows, bool))

    def close(self) -> int:
        """Close both files, which the unit's commit flushes; return how many vectors there are."""
        del self._file
        np.save(self.folder / VALID, self._valid)
        return int(self._valid.sum())


class Batches:
    """Hands prepared images to the embedders in batches, a few of which are under way."""

    def __init__(
        self,
        state: State,
        embedders: Sequence[EmbedderSettings],
        outputs: dict[int, NewVectors],
    ) -> None:
        self._state, self._embedders, self._outputs = state, embedders, outputs
        self._batches: dict[int, tuple[list[int], list[Prepared]]] = defaultdict(lambda: ([], []))
        self._under_way: deque[tuple[int, list[int], Pending]] = deque()

    def add(self, place: int, row: int, image: Prepared) -> None:
        """Take an image; a full batch is started."""
        rows, images = self._batches[place]
        rows.append(row)
        images.append(image)
        if len(rows) == self._embedders[place].batch_size:
            self._start(place)

    def finish(self) -> None:
        """Embed what is left, and wait for all."""
        for place in sorted(self._batches):
            self._start(place)
        while self._under_way:
            self._store()

    def _start(self, place: int) -> None:
        rows, images = self._batches.pop(place)
        self._under_way.append((place, rows, self._state.call("embed", place, images)))
        while len(self._under_way) > UNDER_WAY * len(self._outputs):
            self._store()

    def _store(self) -> None:
        place, rows, pending = self._under_way.popleft()
        self._outputs[place].put(rows, pending.result())
