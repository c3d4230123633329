"""Reads a retrieval benchmark: queries, a gallery, and what is positive or junk for each query."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict, ValidationError

from shared.datasets.filetypes import IMAGE_EXTENSIONS, extension
from shared.datasets.listing import ListingError, expand
from shared.errors import LvdError
from shared.progress import warn
from train.evaluation.file_features import ImageFile

_REMEDY = (
    "give a folder with gnd.json and jpg/ (Oxford and Paris), or with queries/CLASS/IMAGE and "
    "gallery/CLASS/IMAGE"
)
_CONVERSION = (
    "import json, pickle; json.dump(pickle.load(open('{name}', 'rb')), open('gnd.json', 'w'), "
    "default=lambda v: v.tolist())"
)


class Relevance(NamedTuple):
    """Rows of the gallery that are right for a query, and those that are passed over."""

    positive: Int64[np.ndarray, " p"]
    junk: Int64[np.ndarray, " j"]


class Benchmark(NamedTuple):
    """What is looked for, and where; for each protocol, the relevance for each query."""

    queries: list[ImageFile]
    gallery: list[ImageFile]
    protocols: dict[str, list[Relevance]]


def read_benchmark(path: str, crop_queries: bool) -> Benchmark:
    """Return the benchmark in the folder `path`.

    With `gnd.json` and `jpg/`: Oxford and Paris revisited (Radenovic et al., arXiv 1803.11285,
    section 3.3): `easy` has easy positives and passes over hard and junk, `medium` has easy and
    hard ones, `hard` has hard ones and passes over easy and junk. `crop_queries` cuts each query to
    its `bbx`. With `queries/` and `gallery/` of class folders: `same class` is positive, nothing is
    junk. Raises LvdError where neither is there or they are not well formed.
    """
    root = Path(path).expanduser().absolute()
    if (root / "gnd.json").is_file():
        return _revisited(root, crop_queries)
    if (root / "queries").is_dir() and (root / "gallery").is_dir():
        return _class_folders(root)
    pickles = sorted(file.name for file in root.glob("gnd*.pkl"))
    if pickles:
        raise LvdError(
            f"--data: {root / pickles[0]} is a pickle, which can run code and is never read: if "
            f'you trust it, run there: python -c "{_CONVERSION.format(name=pickles[0])}"'
        )
    raise LvdError(f"--data: there is no benchmark at {path!r}: {_REMEDY}")


class _Judged(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    bbx: tuple[float, float, float, float] | None = None
    easy: list[int]
    hard: list[int]
    junk: list[int]


class _GroundTruth(BaseModel):
    imlist: list[str]
    qimlist: list[str]
    gnd: list[_Judged]


def _revisited(root: Path, crop_queries: bool) -> Benchmark:
    file = root / "gnd.json"
    try:
        truth = _GroundTruth.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise LvdError(
            f"--data: {file} is no ground truth ({place}: {first['msg']}): it holds imlist, "
            "qimlist and gnd, a list of {bbx, easy, hard, junk}"
        ) from None
    if len(truth.qimlist) != len(truth.gnd) or not truth.imlist:
        raise LvdError(
            f"--data: {file} has {len(truth.imlist)} images, {len(truth.qimlist)} queries and "
            f"{len(truth.gnd)} entries of gnd: each query needs one entry, and images to rank"
        )
    rows = {row for judged in truth.gnd for row in judged.easy + judged.hard + judged.junk}
    wrong = rows - set(range(len(truth.imlist)))
    if wrong:
        raise LvdError(f"--data: {file} names image {min(wrong)}: imlist ends before it")
    protocols: dict[str, list[Relevance]] = {"easy": [], "medium": [], "hard": []}
    for judged in truth.gnd:
        easy, hard, junk = judged.easy, judged.hard, judged.junk
        protocols["easy"].append(_relevance(easy, junk + hard))
        protocols["medium"].append(_relevance(easy + hard, junk))
        protocols["hard"].append(_relevance(hard, junk + easy))
    boxes = [judged.bbx if crop_queries else None for judged in truth.gnd]
    queries = [
        ImageFile(_image(root, name), box) for name, box in zip(truth.qimlist, boxes, strict=True)
    ]
    return Benchmark(queries, [ImageFile(_image(root, name)) for name in truth.imlist], protocols)


def _relevance(positive: list[int], junk: list[int]) -> Relevance:
    right = np.unique(np.array(positive, np.int64))
    return Relevance(right, np.setdiff1d(np.array(junk, np.int64), right))


def _image(root: Path, name: str) -> Path:
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts:
        raise LvdError(f"--data: {root / 'gnd.json'} names {name!r}, outside of {root / 'jpg'}")
    return root / "jpg" / (name if extension(name) in IMAGE_EXTENSIONS else f"{name}.jpg")


def _class_folders(root: Path) -> Benchmark:
    queries, wanted = _labelled(root / "queries")
    gallery, labels = _labelled(root / "gallery")
    rows: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows[label].append(row)
    of_class = {label: _relevance(rows.get(label, []), []) for label in set(wanted)}
    return Benchmark(queries, gallery, {"same class": [of_class[label] for label in wanted]})


def _labelled(folder: Path) -> tuple[list[ImageFile], list[str]]:
    """Return the images below a folder, sorted, and the names of the first folders they lie in."""
    try:
        names = [file.path for file in expand(str(folder)).files]
    except (ListingError, OSError) as error:
        raise LvdError(f"--data: {folder} cannot be listed: {error}") from error
    names = [name for name in names if extension(name) in IMAGE_EXTENSIONS]
    inside = [name for name in names if "/" in name]
    if not inside:
        raise LvdError(f"--data: {folder} holds no CLASS/IMAGE: {_REMEDY}")
    if len(inside) < len(names):
        warn(f"--data: {len(names) - len(inside)} images in {folder} have no class folder")
    return [ImageFile(folder / name) for name in inside], [n.partition("/")[0] for n in inside]
