"""The training-free embedder: where things are, which way edges run, and what the tones are like.

For use where no weights are at hand. It finds copies well (an edited copy keeps its layout and its
edges), and tells photographs from drawings, pages and screens by how gradients and tones are
distributed. It knows nothing of what a photograph shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8
from PIL import Image
from skimage.color import rgb2lab
from skimage.feature import hog

from shared.embedders.settings import EmbedderSettings

LIBRARIES = ("numpy", "PIL", "skimage")
VERSION = 1
SIDE = 64
"""Images are squeezed to this square: a copy may have another size, and nearly the same shape."""
CELL = 8
ORIENTATIONS = 6
REDUCE_TO = 4 * SIDE
"""Measured on crawl-small, against full decoding: at 2 * SIDE 1.4% of decisions change, at 3 * SIDE
(286 of 1,018 JPEGs are reduced) 0.6%; at 4 * SIDE none of its JPEGs is large enough to be reduced."""

# Bin edges in CIELAB units: steps of lightness between neighbours, lightness, and chroma.
_GRADIENTS = np.array([0, 0.25, 1, 2, 4, 8, 16, np.inf])
_LIGHTNESS = np.linspace(0, 100, 9)
_CHROMA = np.array([0, 2, 5, 10, 20, 40, np.inf])

# Centre and scale of each kind of statistic, as crawled images have them: what is left is signed,
# so that unlike images have cosines about 0 and not about 0.9.
_ORIENTATION_SCALE = (0.30, 0.10)
_GRADIENT_SCALE = (0.34, 0.15)
_LIGHTNESS_SCALE = (0.27, 0.20)
_CHROMA_SCALE = (0.30, 0.23)


def load_preparation(settings: EmbedderSettings) -> Descriptor:
    """Return the descriptor, which is its own preparation."""
    return Descriptor(reduced=settings.decode == "reduced")


def load_forward(settings: EmbedderSettings, threads: int) -> Descriptor:
    """Return the descriptor; it uses one thread."""
    return load_preparation(settings)


class Descriptor:
    """HOG, a thumbnail, and statistics of colour and gradients, as one vector."""

    dim = (SIDE // CELL) ** 2 * (1 + ORIENTATIONS) + ORIENTATIONS + 7 + 8 + 6
    input_side = SIDE

    def __init__(self, *, reduced: bool = True) -> None:
        self.reduce_to = REDUCE_TO if reduced else None

    def prepare(self, image: Image.Image) -> UInt8[np.ndarray, "64 64 3"]:
        """Return the image squeezed to 64 x 64 pixels. Thread-safe."""
        # Of Pillow's filters, this one depends least on the size that the image was decoded at.
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.HAMMING), dtype=np.uint8)

    def embed(self, batch: Sequence[UInt8[np.ndarray, "64 64 3"]]) -> Float32[np.ndarray, "n d"]:
        """Return the L2-normalised vectors."""
        return np.stack([_describe(pixels) for pixels in batch])


def _describe(pixels: UInt8[np.ndarray, "64 64 3"]) -> Float32[np.ndarray, " d"]:
    """Return layout, edges and statistics, each of unit length (or zero), as one unit vector."""
    lab = rgb2lab(pixels)
    lightness = lab[..., 0]
    cells = SIDE // CELL
    layout = lightness.reshape(cells, CELL, cells, CELL).mean((1, 3))
    edges = hog(
        lightness,
        orientations=ORIENTATIONS,
        pixels_per_cell=(CELL, CELL),
        cells_per_block=(1, 1),
        feature_vector=False,
    ).reshape(-1, ORIENTATIONS)
    orientation = edges.mean(0)
    parts = (layout - layout.mean(), edges - orientation, _statistics(lab, orientation))
    return _unit(np.concatenate([_unit(part.ravel()) for part in parts])).astype(np.float32)


def _statistics(
    lab: Float64[np.ndarray, "64 64 3"], orientation: Float64[np.ndarray, " orientations"]
) -> Float64[np.ndarray, " statistics"]:
    """Return signed statistics that tell photographs from charts, pages and screens."""
    steps = np.hypot(*np.gradient(lab[..., 0]))
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    parts = (
        (orientation, _ORIENTATION_SCALE),
        (_shares(steps, _GRADIENTS), _GRADIENT_SCALE),
        (_shares(lab[..., 0].clip(0, 100), _LIGHTNESS), _LIGHTNESS_SCALE),
        (_shares(chroma, _CHROMA), _CHROMA_SCALE),
    )
    return np.concatenate([(values - centre) / scale for values, (centre, scale) in parts])


def _shares(
    values: Float[np.ndarray, "64 64"], edges: Float[np.ndarray, " edges"]
) -> Float64[np.ndarray, " edges-1"]:
    """Return the square roots of a histogram's shares: their dot product is a similarity."""
    return np.sqrt(np.histogram(values, bins=edges)[0] / values.size)


def _unit(vector: Float64[np.ndarray, " d"]) -> Float64[np.ndarray, " d"]:
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 1e-6 else np.zeros_like(vector)
