"""`embed`: the vectors of the images in a folder, or of pictures in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float16, UInt8
from PIL import Image

from curate.catalogue.content import key_prefix
from curate.catalogue.part_files import FACTS, VECTORS
from curate.embedding.embed import Forwards, embed_part, preparation
from curate.embedding.new_vectors import to_stored
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.state import LocalState
from shared.datasets.dataset import DatasetSettings, Part, list_parts
from shared.embedders.embedder import resolve, resolve_identity, settings_for_folder
from shared.embedders.settings import BUNDLED, DESCRIPTOR, EmbedderSettings, bundled_settings

Picture = Image.Image | UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True)
class Embedded:
    """Images and their vectors: n rows, in the order of their keys, or as they were given."""

    keys: list[str]
    """Those of `lvd-curate`; of pictures in memory, `0`, `1`, ..."""
    vectors: Float16[np.ndarray, "n d"]
    """As the pipeline stores them: of length 1 but for rounding, zeros where there is none."""
    problems: dict[str, str] = field(default_factory=dict)
    """Why an image has no vector, by key."""

    def __len__(self) -> int:
        return len(self.keys)


def embed(
    images: str | Path | Sequence[Picture],
    embedder: str | Path | EmbedderSettings = "bundled",
    *,
    threads: int = 1,
) -> Embedded:
    """Return the vectors of the images in a folder (or of pictures in memory) by an embedder.

    A path is what a pipeline's dataset may be: a folder of images or tars, a tar, a glob, a Parquet
    file, an fsspec URL. Pictures are PIL's, or uint8 arrays [h, w, 3] of RGB. The embedder is
    `bundled`, `bundled-copies`, `descriptor`, a model folder, or settings as in `pipelines.yaml`.
    An image that cannot be decoded has zeros for a vector and its reason in `problems`.

    Raises LvdError where nothing is there or the embedder is unknown, ValueError for a picture of
    another shape or type.
    """
    settings = resolve_identity(resolve(_embedder(embedder)))
    if not isinstance(images, str | Path):
        return _embed_pictures(images, settings, threads)
    parts = list_parts("images", DatasetSettings(path=str(images)))
    forwards = Forwards((settings,), threads)
    keys: list[str] = []
    vectors: list[Float16[np.ndarray, "_ d"]] = []
    problems: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as work:
        request = EmbedRequest(Path(work), EmbedSettings(), (settings,), (), threads)
        for part in parts:
            own, stored, wrong = _embed_part(forwards, part, request, Path(work) / "scratch")
            keys += own
            vectors.append(stored)
            problems |= wrong
    order = sorted(range(len(keys)), key=lambda row: keys[row].encode())
    return Embedded([keys[row] for row in order], np.concatenate(vectors)[order], problems)


def _embed_part(
    forwards: Forwards, part: Part, request: EmbedRequest, scratch: Path
) -> tuple[list[str], Float16[np.ndarray, "n d"], dict[str, str]]:
    scratch.mkdir(exist_ok=True)
    content = embed_part(LocalState(forwards), part, request, scratch=scratch)["content"]
    facts = pq.read_table(request.facts / content / FACTS, columns=["name", "problem"])
    stored = np.load(request.vectors(request.embedders[0]) / content / VECTORS)
    keys = [f"{key_prefix(part)}{name}" for name in facts["name"].to_pylist()]
    problems = dict(zip(keys, facts["problem"].to_pylist(), strict=True))
    return keys, stored, {key: problem for key, problem in problems.items() if problem}


def _embed_pictures(
    pictures: Sequence[Picture], settings: EmbedderSettings, threads: int
) -> Embedded:
    forwards, prepare = Forwards((settings,), threads), preparation(settings).prepare
    vectors = np.zeros((len(pictures), forwards.dim(0)), np.float16)
    keys = [str(row) for row in range(len(pictures))]
    problems: dict[str, str] = {}
    for at in range(0, len(pictures), settings.batch_size):
        rows = range(at, min(at + settings.batch_size, len(pictures)))
        batch = [prepare(to_image(pictures[row], row)) for row in rows]
        stored, usable = to_stored(forwards.embed(0, batch))
        vectors[at : at + len(batch)][usable] = stored[usable]
        no_vector = "the embedder gave no finite, non-zero vector"
        problems |= {keys[at + row]: no_vector for row in np.flatnonzero(~usable)}
    return Embedded(keys, vectors, problems)


def to_image(picture: Picture, row: int) -> Image.Image:
    """Return a picture in memory as RGB; ValueError, with its row, for another shape or type."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(
            f"images[{row}] is {array.dtype} {list(array.shape)}: give uint8 [h, w, 3] of RGB, or "
            "an image of PIL"
        )
    return Image.fromarray(array)


def _embedder(named: str | Path | EmbedderSettings) -> EmbedderSettings:
    if isinstance(named, EmbedderSettings):
        return named
    if named in BUNDLED:
        return bundled_settings(str(named))
    if named == DESCRIPTOR:
        return EmbedderSettings(kind="descriptor")
    return settings_for_folder(Path(named))
