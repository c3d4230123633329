"""Batches of any length for an encoder: short ones padded, those too large for the GPU halved."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from shared.errors import LvdError

FEWEST = 16
"""Images that an encoder is given at least. Measured on CPUs: in float32, convolutional networks
give other last bits in batches of fewer; all else is the same bit by bit."""


class DeviceMemoryError(Exception):
    """The encoder's device has no room for a batch."""


class BatchedForward(ABC):
    """A forward pass whose vector of an image does not depend on what else is in its batch.

    A batch of fewer than `FEWEST` images is padded with its last one. Where the device runs out of
    memory, this batch and all later ones are encoded in pieces of half the length; on such a device
    a vector's last bits may depend on the length.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._most = sys.maxsize

    @abstractmethod
    def encode(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n d"]:
        """Return what `embed` returns of a batch; raise DeviceMemoryError where it has no room."""

    def embed(self, batch: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float32[np.ndarray, "n d"]:
        """Return the L2-normalised vectors of prepared images, or a classifier's probabilities.

        Raises LvdError where the device has no room for one image.
        """
        pixels = np.stack(batch)
        missing = min(FEWEST, self._most) - len(pixels)
        if missing > 0:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
        return np.concatenate(list(self._pieces(pixels)))[: len(batch)]

    def _pieces(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Iterator[Float32[np.ndarray, "_ d"]]:
        while len(pixels):
            piece = pixels[: self._most]
            try:
                vectors = self.encode(piece)
            except DeviceMemoryError as error:
                if len(piece) == 1:
                    height, width = pixels.shape[1:3]
                    raise LvdError(
                        f"embedder model {self._model}: the GPU has no room for one image of "
                        f"{height} x {width} px ({error}): free some of its memory, set a smaller "
                        "image_size, or device=cpu"
                    ) from None
                self._most = len(piece) // 2
                continue
            yield vectors
            pixels = pixels[len(piece) :]
