"""Small pictures in tars and folders, and an embedder that looks at colours alone."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, size=(48, 40)) -> Image.Image:
    """Return a picture that no other number gives, in colours of its own."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(30, 226, (3, 3, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, file_format="JPEG") -> bytes:
    """Return the bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, file_format)
    return stream.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode="w") -> Path:
    """Write members into a tar; `w:gz` compresses it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


class ColourEmbedder:
    """An image's vector is its colours in nine places; black gives NaN, blue zero, red infinity."""

    dim = 27
    input_side = 3
    reduce_to = None

    def __init__(self) -> None:
        self.batches: list[int] = []

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return a picture of 3 x 3 pixels."""
        return np.asarray(image.resize((3, 3), Image.Resampling.BOX), np.uint8)

    def embed(self, batch: list[np.ndarray]) -> np.ndarray:
        """Return unit vectors, but for three colours."""
        self.batches.append(len(batch))
        vectors = np.stack(batch).reshape(len(batch), -1).astype(np.float32) - 128
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        mean = np.stack(batch).mean((1, 2))
        vectors[mean.max(1) < 5] = np.nan
        vectors[(mean[:, 2] > 250) & (mean[:, 0] < 5)] = 0
        vectors[(mean[:, 0] > 250) & (mean[:, 2] < 5)] = 1e6
        return vectors
