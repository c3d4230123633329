"""The stages as functions on arrays and folders, for programs of one's own: no Ray, no work folder.

They call what the stages call, so that the same vectors give the same result. All of it happens in
this process, and in memory: for more images than that allows there is `lvd-curate run`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float16, Float32, Int8, Int64, UInt8
from PIL import Image

from curate.catalogue.content import key_prefix
from curate.catalogue.part_files import FACTS, VECTORS
from curate.embedding.embed import Forwards, embed_part, preparation, to_stored
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.neighbours.cluster import (
    ClusterSettings,
    find_centroids,
    group_centroids,
    sample_rows,
)
from curate.neighbours.levels import nearest_of
from curate.neighbours.search import top_k, unit, use_threads
from curate.retrieval.cluster import FromClustersSettings, take_from_clusters
from curate.retrieval.knn import KnnSettings, deal, nearest_images
from curate.retrieval.threshold import below_threshold, beyond_target
from curate.state import LocalState
from shared.datasets.dataset import DatasetSettings, Part, list_parts
from shared.embedders.embedder import (
    BUNDLED,
    DESCRIPTOR,
    EmbedderSettings,
    bundled_settings,
    resolve,
    resolve_identity,
    settings_for_folder,
)

Picture = Image.Image | UInt8[np.ndarray, "_ _ 3"]
NO_FLOOR = -1.0


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


@dataclass(frozen=True)
class Retrieved:
    """What a seed retrieves of n images."""

    kept: Bool[np.ndarray, " n"]
    nearest: Int64[np.ndarray, "n k"]
    """The rows of the k most similar seed images, the most similar first; -1 without a vector."""
    similarity: Float32[np.ndarray, "n k"]
    """Their cosines; nan without a vector."""


def retrieve(
    vectors: Float[np.ndarray, "n d"],
    seed_vectors: Float[np.ndarray, "s d"],
    *,
    strategy: Literal["threshold", "knn", "cluster"] = "threshold",
    threshold: float | None = None,
    target: int | float | None = None,
    max_images: int | None = None,
    top_k: int = 5,
    threads: int = 1,
    **options: Any,
) -> Retrieved:
    """Retrieve the images that are similar to a seed, by a strategy of the pipeline's.

    `threshold`: those whose cosine with a seed image reaches `threshold` (inclusive), or the
    `target` most similar ones (a number, or a share between 0 and 1). `knn`: the `neighbours` (4)
    nearest images of each seed image (`collisions`: `once` or `deeper`). `cluster`: `images` of each
    cluster with `more_than` seed images, at most `cap`, of `clusters` clusters. The options are those
    of `retrieve.knn` and `retrieve.cluster` of a pipeline; for both, `threshold` is a floor. Of what
    is retrieved, `max_images` limits all to the most similar. Ties go to the first row.

    Raises ValueError for other shapes, what is not finite, seeds without a vector, and options that
    the strategy does not have.
    """
    stored, seeds = checked("vectors", vectors), checked("seed_vectors", seed_vectors)
    if stored.shape[1] != seeds.shape[1]:
        raise ValueError(f"vectors have {stored.shape[1]} dimensions, seeds {seeds.shape[1]}")
    rows, seed_rows = (np.flatnonzero((array != 0).any(1)) for array in (stored, seeds))
    if not len(seed_rows):
        raise ValueError("seed_vectors holds no vector that is not zero")
    use_threads(threads)
    images, seeds = stored[rows], seeds[seed_rows]
    cosines, found = _top_k(images, seeds, top_k)
    first = cosines[:, 0]
    floor = NO_FLOOR if threshold is None else threshold
    if strategy == "threshold":
        taken = _take_similar(first, threshold, target, options)
    elif target is not None:
        raise ValueError(f"target is for the strategy threshold, not for {strategy}")
    elif strategy == "knn":
        taken = _take_neighbours(images, seeds, first, floor, KnnSettings(**options))
    elif strategy == "cluster":
        taken = _take_of_clusters(images, seeds, first, floor, FromClustersSettings(**options))
    else:
        raise ValueError(f"no strategy {strategy!r}: there are threshold, knn and cluster")
    if max_images is not None:
        ranked = taken[np.argsort(-first[taken], kind="stable")]
        taken = ranked[:max_images]
    kept = np.zeros(len(stored), bool)
    kept[rows[taken]] = True
    near = np.full((len(stored), cosines.shape[1]), -1, np.int64)
    similarity = np.full(near.shape, np.nan, np.float32)
    near[rows], similarity[rows] = seed_rows[found], cosines
    return Retrieved(kept, near, similarity)


def _top_k(
    images: Float[np.ndarray, "n d"], seeds: Float[np.ndarray, "s d"], k: int
) -> tuple[Float32[np.ndarray, "n k"], Int64[np.ndarray, "n k"]]:
    if k < 1:
        raise ValueError(f"top_k is {k}: ask for one seed image at least")
    return top_k(images, seeds, k)


def _take_similar(
    similarity: Float32[np.ndarray, " n"],
    threshold: float | None,
    target: int | float | None,
    options: dict[str, Any],
) -> Int64[np.ndarray, " t"]:
    if options:
        raise ValueError(f"the strategy threshold has no {', '.join(sorted(options))}")
    if (threshold is None) == (target is None):
        raise ValueError("the strategy threshold needs a threshold or a target, and not both")
    if target is None:
        assert threshold is not None
        return _taken(below_threshold(similarity, threshold))
    if isinstance(target, float):
        if not 0 < target < 1:
            raise ValueError(f"target is {target}: a share lies between 0 and 1")
        target = max(1, round(target * len(similarity)))
    none = np.zeros(len(similarity), bool)
    return _taken(beyond_target(similarity, none, target)[0])


def _take_neighbours(
    images: Float[np.ndarray, "n d"],
    seeds: Float[np.ndarray, "s d"],
    similarity: Float32[np.ndarray, " n"],
    floor: float,
    settings: KnnSettings,
) -> Int64[np.ndarray, " t"]:
    able = int((similarity >= np.float32(floor)).sum())
    for number in count():
        depth = max(1, min(settings.neighbours * 4**number, len(images)))
        cosines, found = nearest_images(seeds, [images], depth)
        reach = cosines >= np.float32(floor)
        seed = np.broadcast_to(np.arange(len(seeds))[:, None], found.shape)[reach]
        wanted = found[reach]
        if settings.collisions == "once":
            break
        holds = deal(seed, wanted, cosines[reach], settings.neighbours)
        wanted = wanted[holds]
        lacks = np.bincount(seed[holds], minlength=len(seeds)) < settings.neighbours
        may_ask = reach.all(1) & (depth < len(images))
        if len(wanted) == able or not (lacks & may_ask).any():
            break
    return np.unique(wanted)


def _take_of_clusters(
    images: Float[np.ndarray, "n d"],
    seeds: Float[np.ndarray, "s d"],
    similarity: Float32[np.ndarray, " n"],
    floor: float,
    settings: FromClustersSettings,
) -> Int64[np.ndarray, " t"]:
    if settings.order != "nearest":
        raise ValueError("order is by a hash of keys in a pipeline: only nearest is known here")
    cut = ClusterSettings(clusters=settings.clusters or "auto")
    sample = unit(images[sample_rows(len(images), cut)])
    centroids = find_centroids(sample, len(images), cut)
    cells = centroids, group_centroids(centroids, cut)
    seeds_in = np.bincount(nearest_of(unit(seeds), *cells), minlength=len(centroids))
    reach = np.flatnonzero(similarity >= np.float32(floor))
    order = reach[np.argsort(-similarity[reach], kind="stable")]
    limits = (settings.images, settings.more_than, settings.cap)
    return _taken(take_from_clusters(nearest_of(unit(images), *cells), seeds_in, order, *limits))


def _taken(missed: Int8[np.ndarray, " n"]) -> Int64[np.ndarray, " t"]:
    return np.flatnonzero(missed == 0)


def checked(name: str, vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Return vectors as float16 or float32 [n, d]; ValueError for anything else."""
    array = np.asarray(vectors)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}: give floats [n, d]")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds what is not finite")
    return array if array.dtype in (np.float16, np.float32) else array.astype(np.float32)
