"""Streams image files through a frozen model once, and keeps what it made of them on disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float16, Int32, UInt8
from PIL import Image
from torch import Tensor

from shared.errors import LvdError
from shared.pictures.images import ImageError, decode
from shared.progress import stage_bar, warn
from shared.storage.commits import run_unit
from shared.storage.files import fingerprint
from train.evaluation.cache import scratch_folder

if TYPE_CHECKING:
    from train.frozen.model import FrozenModel

VERSION = 1
"""Part of each address: to be raised when the same files would give other features."""
_FLOAT16_LARGEST = 65504.0

Item = TypeVar("Item")
Result = TypeVar("Result")


class ImageFile(NamedTuple):
    """One image, or the part of it inside a box."""

    path: Path
    box: tuple[float, float, float, float] | None = None
    """Left, upper, right and lower edge in pixels of the upright image."""


class View(NamedTuple):
    """How a model looks at images and what is kept of it."""

    name: str
    """Stands for the two functions below in the address of what is kept: nothing else does."""
    prepare: Callable[[Image.Image], UInt8[np.ndarray, "h w 3"]]
    features: Callable[[UInt8[Tensor, "n 3 h w"]], Float[Tensor, "n ..."]]
    reduce_to: int | None
    """Large JPEGs may be decoded at a smaller scale, their shorter side at least this many px."""


class FileFeatures(NamedTuple):
    """What was kept, a row for each image file; `sizes` is 0, 0 where it could not be read."""

    values: Float16[np.ndarray, "n ..."]
    sizes: Int32[np.ndarray, "n 2"]
    """Height and width as decoded, upright and before the box."""


def file_features(
    model: FrozenModel,
    images: Sequence[ImageFile],
    view: View,
    *,
    role: str,
    cache: Path,
    batch_size: int,
    workers: int,
) -> FileFeatures:
    """Return the features of image files, mapped from below `cache`, where they are made once.

    The address is made of the model's fingerprint, the view's name, and each file's path, size,
    time and box. Images that cannot be decoded are counted in a warning each time. Raises LvdError
    where none can.
    """
    known = [
        VERSION,
        view.name,
        [[str(image.path), *_stamp(image.path), image.box] for image in images],
    ]
    out = cache / model.fingerprint / f"files-{fingerprint(known)}"
    with scratch_folder(cache) as scratch:
        run_unit(_write, (model, images, view, role, batch_size, workers), out, scratch)
    values, sizes = (np.load(out / f"{name}.npy", mmap_mode="r") for name in ("values", "sizes"))
    broken = [str(images[row].path) for row in np.flatnonzero(sizes[:, 0] == 0).tolist()]
    if broken:
        warn(f"{role}: {len(broken)} images cannot be decoded and are left out (as {broken[0]})")
    return FileFeatures(values, np.array(sizes))


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Yield `function(item)` of each item in order, computed on threads a few items ahead."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write(
    model: FrozenModel,
    images: Sequence[ImageFile],
    view: View,
    role: str,
    batch_size: int,
    workers: int,
    *,
    out: Path,
) -> dict[str, Any]:
    sizes = np.zeros((len(images), 2), np.int32)
    values: np.memmap | None = None
    rows: list[int] = []
    batch: list[np.ndarray] = []
    with stage_bar("features", len(images)) as bar:
        bar.note(f"{role} through {model.name}")
        looks = ahead(lambda image: _look(image, view), images, workers)
        for row, look in enumerate(looks):
            if look is not None:
                sizes[row], pixels = look
                rows.append(row)
                batch.append(pixels)
            if batch and (len(batch) == batch_size or row + 1 == len(images)):
                made = _features(view, batch)
                if values is None:
                    values = _array(out / "values.npy", (len(images), *made.shape[1:]))
                values[rows] = made
                rows, batch = [], []
            bar.advance()
    if values is None:
        raise LvdError(
            f"{role}: none of the {len(images)} images can be decoded, {images[0].path} for one: "
            "check that they are whole"
        )
    values.flush()
    np.save(out / "sizes.npy", sizes)
    return {"images": len(images), "model": model.name}


def _array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


def _features(view: View, batch: list[np.ndarray]) -> Float16[np.ndarray, "n ..."]:
    pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)
    made = view.features(pixels).float()
    return made.clamp(-_FLOAT16_LARGEST, _FLOAT16_LARGEST).half().cpu().numpy()


def _look(image: ImageFile, view: View) -> tuple[tuple[int, int], np.ndarray] | None:
    """Return the image's height and width, and its prepared pixels; None where it is broken."""
    try:
        data = image.path.read_bytes()
        picture = decode(data, reduce_to=None if image.box else view.reduce_to)
        size = picture.height, picture.width
        return size, view.prepare(_inside(picture, image.box) if image.box else picture)
    except (OSError, ImageError):
        return None


def _inside(picture: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    left, upper, right, lower = (round(edge) for edge in box)
    left, upper = max(left, 0), max(upper, 0)
    right, lower = min(right, picture.width), min(lower, picture.height)
    if left >= right or upper >= lower:
        raise ImageError(f"the box {box} holds no pixel of the image")
    return picture.crop((left, upper, right, lower))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
