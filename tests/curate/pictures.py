"""Small pictures in tars and folders, and an embedder that looks at colours alone."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from curate.embedding import embed
from curate.embedding.embed import embed_part
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.state import LocalState
from shared.datasets.dataset import Part
from shared.embedders.settings import EmbedderSettings


def picture(number: int, size=(48, 40)) -> Image.Image:
    """Return a picture that no other number gives, in colours of its own."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(30, 226, (3, 3, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def textured(number: int) -> Image.Image:
    """Return patches of all sizes, as pictures have them."""
    rng = np.random.default_rng(number)
    whole = np.zeros((80, 96, 3))
    for side in (3, 6, 12, 24, 48):
        coarse = Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8))
        whole += np.asarray(coarse.resize((96, 80), Image.Resampling.BICUBIC)) / 5
    return Image.fromarray(whole.astype(np.uint8))


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

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return a picture of 3 x 3 pixels."""
        return np.asarray(image.resize((3, 3), Image.Resampling.BOX), np.uint8)

    def embed(self, batch: list[np.ndarray]) -> np.ndarray:
        """Return unit vectors, but for three colours."""
        vectors = np.stack(batch).reshape(len(batch), -1).astype(np.float32) - 128
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        mean = np.stack(batch).mean((1, 2))
        vectors[mean.max(1) < 5] = np.nan
        vectors[(mean[:, 2] > 250) & (mean[:, 0] < 5)] = 0
        vectors[(mean[:, 0] > 250) & (mean[:, 2] < 5)] = 1e6
        return vectors


class ColourForwards:
    """What a worker holds that embeds with the `ColourEmbedder`."""

    def dim(self, place: int) -> int:
        """Return the length of a vector."""
        return ColourEmbedder.dim

    def runtime(self, place: int) -> dict:
        """Return what is noted in the vectors' manifest."""
        return {"device": "imagined"}

    def embed(self, place: int, batch: list[np.ndarray]) -> np.ndarray:
        """Return the vectors of prepared images."""
        return ColourEmbedder().embed(batch)


def colour_request(work: Path, *, batch_size=4, columns=(), threads=2, settings=None):
    """Return a request that stands for the `ColourEmbedder`."""
    configured = EmbedderSettings(kind="descriptor", batch_size=batch_size)
    return EmbedRequest(work, settings or EmbedSettings(), (configured,), tuple(columns), threads)


def embed_by_colours(part: Part, request: EmbedRequest) -> str:
    """Embed a part with the `ColourEmbedder`, and return its content."""
    scratch = request.work / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "preparation", lambda settings: ColourEmbedder())
        return embed_part(LocalState(ColourForwards()), part, request, scratch=scratch)["content"]
