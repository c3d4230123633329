"""Finds images and the masks or depth maps that belong to them, and reads the latter."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from shared.datasets.filetypes import IMAGE_EXTENSIONS, extension
from shared.datasets.listing import File, ListingError, expand
from shared.errors import LvdError
from shared.pictures.images import READERS, ImageError, read_header
from shared.progress import warn

Kind = Literal["mask", "depth"]

_MOST_PIXELS = 178_956_970
_LOSSLESS = frozenset({"png", "tif", "tiff", "bmp", "gif", "npy"})
_SPLITS = {"--train": ("training", "train")}
_OTHER_SPLITS = ("validation", "val", "test")
_KNOWN = {
    "mask": "images/[training|validation/] and annotations/... (ADE20K), JPEGImages/ and "
    "SegmentationClass/ (VOC), or images/[train|val/] and masks/...",
    "depth": "rgb_X.jpg beside sync_depth_X.png or X_colors.png beside X_depth.png (NYU), or "
    "images/ or rgb/[train|test/] and depth/...",
}


class Pair(NamedTuple):
    """One image and what is known of its pixels."""

    key: str
    """The image's path below the folder that was asked for."""
    image: Path
    target: Path
    ignored: int = 255
    """The label of a mask's pixels that count for nothing; ADE20K's is 0."""


class _Layout(NamedTuple):
    images: str
    targets: str
    ignored: int = 255


_LAYOUTS = {
    "mask": (
        _Layout("JPEGImages", "SegmentationClass"),
        _Layout("images", "annotations", ignored=0),
        _Layout("images", "masks"),
    ),
    "depth": (_Layout("images", "depth"), _Layout("rgb", "depth")),
}


def find_pairs(path: str, kind: Kind, role: str) -> list[Pair]:
    """Return the pairs below the folder `path`, sorted by key.

    A mask or depth map belongs to the image of the same name, extensions apart. Where the layout
    splits its data (folders of ADE20K, ImageSets/Segmentation of VOC) and `path` is the root, role
    "--train" has the training split and every other one the validation split; `path` may also be
    one split's folder of images. Images without a partner are counted in a warning. Raises LvdError
    that lists the layouts where `path` has none of them, and where it holds no pair.
    """
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise LvdError(f"{role}: there is no folder at {path!r}: {_remedy(kind)}")
    for layout in _LAYOUTS[kind]:
        pairs = _in_folders(root, layout, role)
        if pairs is not None:
            break
    else:
        pairs = _side_by_side(root) if kind == "depth" else None
    if pairs is None:
        raise LvdError(f"{role}: {path!r} has no layout of pairs that is known: {_remedy(kind)}")
    whole = [pair for pair in pairs if isinstance(pair, Pair)]
    alone = [pair for pair in pairs if isinstance(pair, str)]
    if not whole:
        raise LvdError(f"{role}: no image in {path!r} has a {kind} of its name: {_remedy(kind)}")
    if alone:
        warn(f"{role}: {len(alone)} images have no {kind} and are left out (as {alone[0]})")
    return whole


def find_apart(train: str, test: str, kind: Kind) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs to train on and those to report on; LvdError where they share an image."""
    trained, tested = find_pairs(train, kind, "--train"), find_pairs(test, kind, "--test")
    seen = {pair.image.resolve() for pair in trained}
    both = [pair.key for pair in tested if pair.image.resolve() in seen]
    if both:
        raise LvdError(
            f"{len(both)} images are in --train and in --test, {both[0]} for one: give two sets "
            "that are apart, or the root of a layout that splits its data"
        )
    return trained, tested


def read_mask(path: Path) -> Int32[np.ndarray, "height width"]:
    """Return a mask's labels: a palette image's indices, a grey one's values.

    Raises ImageError where it is broken.
    """
    values = _values(path)
    if values.dtype.kind not in "bui":
        raise ImageError("a mask holds whole numbers")
    labels = values.astype(np.int32)
    if (labels != values).any():
        raise ImageError("a mask's labels fit into 32 bits")
    return labels


def read_depth(path: Path) -> Float32[np.ndarray, "height width"]:
    """Return a depth map in metres, 0 where it is unknown.

    Floats are metres, integers of 16 or more bits millimetres (NYU's); 8 bits have no unit. Raises
    ImageError where it is broken.
    """
    values = _values(path)
    if values.dtype.kind == "f":
        depth = values.astype(np.float32)
    elif values.dtype.kind in "ui" and values.dtype.itemsize > 1:
        depth = values.astype(np.float32) / np.float32(1000)
    else:
        raise ImageError("a depth map has 16-bit millimetres or metres as floats, not 8 bits")
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def _remedy(kind: Kind) -> str:
    return f"give a folder with {_KNOWN[kind]}"


def _in_folders(root: Path, layout: _Layout, role: str) -> list[Pair | str] | None:
    """Return pairs, or the names of images without partner; None where this is not the layout."""
    split = ""
    if root.parent.name == layout.images and not (root / layout.images).is_dir():
        root, split = root.parent.parent, root.name
    elif root.name == layout.images and not (root / layout.images).is_dir():
        root = root.parent
    images, targets = root / layout.images, root / layout.targets
    if not images.is_dir() or not targets.is_dir():
        return None
    names = _SPLITS.get(role, _OTHER_SPLITS)
    if not split:
        split = next((n for n in names if (images / n).is_dir() and (targets / n).is_dir()), "")
    listed = _listed(root, names)
    partners = {
        _trunk(file.path): targets / split / file.path
        for file in reversed(_files(targets / split))
        if extension(file.path) in _LOSSLESS
    }
    return [
        Pair(str(Path(split, file.path)), images / split / file.path, partner, layout.ignored)
        if (partner := partners.get(_trunk(file.path)))
        else file.path
        for file in _files(images / split)
        if extension(file.path) in IMAGE_EXTENSIONS
        and (listed is None or _trunk(file.path) in listed)
    ]


def _side_by_side(root: Path) -> list[Pair | str] | None:
    files = {file.path for file in _files(root)}
    found = [
        Pair(image, root / image, root / depth) if depth in files else image
        for image in sorted(files)
        for depth in _depth_names(image)
    ]
    return found or None


def _depth_names(image: str) -> Iterator[str]:
    folder, slash, name = image.rpartition("/")
    trunk = _trunk(name)
    if extension(name) not in IMAGE_EXTENSIONS:
        return
    if trunk.startswith("rgb_"):
        yield f"{folder}{slash}sync_depth_{trunk.removeprefix('rgb_')}.png"
    elif trunk.endswith("_colors"):
        yield f"{folder}{slash}{trunk.removesuffix('_colors')}_depth.png"


def _listed(root: Path, names: tuple[str, ...]) -> set[str] | None:
    """Return the images that VOC's list of a split names; None where there is no such list."""
    for name in names:
        file = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        if file.is_file():
            return set(file.read_text("utf-8", "replace").split())
    return None


def _files(folder: Path) -> list[File]:
    try:
        return expand(str(folder)).files
    except (ListingError, OSError) as error:
        raise LvdError(f"{folder} cannot be listed: {error}") from error


def _trunk(name: str) -> str:
    return str(Path(name).with_suffix(""))


def _values(path: Path) -> np.ndarray:
    """Return the stored values of an image of one channel, or of a `.npy` array [height, width]."""
    try:
        if extension(path.name) == "npy":
            # Mapped: a header that promises more than the file holds is an error, not memory.
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            values = _stored(path.read_bytes())
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or not values.size:
        raise ImageError("it is in colour, or not [height, width]: one number a pixel is needed")
    return values


def _stored(data: bytes) -> np.ndarray:
    header = read_header(data)
    if header.width * header.height > _MOST_PIXELS:
        raise ImageError(f"too large: {header.width}x{header.height}")
    image = READERS[header.format](io.BytesIO(data))
    image.load()
    return np.asarray(image)
