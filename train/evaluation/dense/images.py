"""What segmentation and depth share: patch tokens of pairs, and what their pixels ought to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Int32, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from shared.embedders.settings import REDUCED_DECODING_FACTOR
from shared.errors import LvdError
from shared.pictures.images import ImageError, upright_size
from shared.progress import warn
from train.evaluation.dense.pairs import Pair
from train.evaluation.dense.windows import Box, Windows, as_shares, blend, slide, whole_images
from train.evaluation.file_features import ImageFile, View, ahead, file_features
from train.evaluation.settings import DenseSettings

if TYPE_CHECKING:
    from train.frozen.model import FrozenModel, JoinedModel


class Sliding(NamedTuple):
    """Square windows over an image resized to a shorter side as long as theirs, in pixels."""

    side: int
    stride: int


@dataclass(frozen=True)
class DenseImages:
    """Pairs seen through a (joined) model: grids of patch tokens for each image, and a target."""

    pairs: Sequence[Pair]
    grids: Sequence[Float16[np.ndarray, "windows rows cols d"]]
    """Of each part of the model, on disk: of all windows, one image's behind another's."""
    sizes: Int32[np.ndarray, "n 2"]
    """Height and width of each image, upright; 0 where it could not be read."""
    read: Callable[[Pair], Float32[np.ndarray, "h w"]]
    """Gives a pair's target, NaN where a pixel counts for nothing; ImageError if it is broken."""
    windows: Windows

    def tokens(self, rows: Sequence[int]) -> Float[Tensor, "windows rows cols d"]:
        """Return the tokens of some images' windows; of several parts, on the finest grid.

        Coarser grids are resampled bilinearly and all are concatenated in the order of the parts.
        """
        places = self._places(rows)
        grids = [torch.from_numpy(grid[places]).float() for grid in self.grids]
        finest = [max(grid.shape[axis] for grid in grids) for axis in (1, 2)]
        return torch.cat([_resampled(grid, finest) for grid in grids], dim=3)

    def windows_of(self, rows: Sequence[int]) -> Windows:
        """Return the windows of some images."""
        counts = [self.windows.counts[row] for row in rows]
        return Windows(counts, self.windows.boxes[self._places(rows)])

    def _places(self, rows: Sequence[int]) -> Int64[np.ndarray, " windows"]:
        return np.concatenate([np.arange(self._ends[row], self._ends[row + 1]) for row in rows])

    @cached_property
    def _ends(self) -> Int64[np.ndarray, " images_and_one"]:
        return np.concatenate([[0], np.cumsum(self.windows.counts, dtype=np.int64)])

    def targets(self, workers: int, role: str) -> Iterator[tuple[int, Float32[np.ndarray, "h w"]]]:
        """Yield each whole image's row and target, in order; a warning counts the broken ones."""
        broken = []
        rows = np.flatnonzero(self.sizes[:, 0]).tolist()
        for row, target in zip(rows, ahead(self._target, rows, workers), strict=True):
            if isinstance(target, ImageError):
                broken.append(f"{self.pairs[row].target}: {target}")
            else:
                yield row, target
        if len(broken) == len(rows):
            raise LvdError(f"{role}: no mask or depth map can be used, for one {broken[0]}")
        if broken:
            warn(f"{role}: {len(broken)} pairs are left out, as {broken[0]}")

    def _target(self, row: int) -> Float32[np.ndarray, "h w"] | ImageError:
        try:
            target = self.read(self.pairs[row])
            (h, w), (height, width) = target.shape, self.sizes[row].tolist()
            # Rounding may have cost either side a pixel, and a turned image would differ by more.
            if abs(w * height - h * width) > max(w, h, width, height):
                raise ImageError(
                    f"it is {w}x{h} px, of another shape than its {width}x{height} image"
                )
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(error.strerror)
        return target


class Samples(NamedTuple):
    """Pixels drawn from images, and their targets; NaN where an image had fewer to draw."""

    images: DenseImages
    rows: list[int]
    """Those of the images that have pixels that count; all else has a row for each of them."""
    points: Float[Tensor, "n points 2"]
    """Down and right, from 0 at one edge of the image to 1 at the other."""
    targets: Float[Tensor, "n points"]

    def at(
        self, chosen: Sequence[int], device: torch.device
    ) -> tuple[Float[Tensor, "pixels d"], Float[Tensor, " pixels"]]:
        """Return the tokens interpolated at the pixels of some of the rows, and their targets."""
        rows = [self.rows[n] for n in chosen]
        grids, points = self.images.tokens(rows).to(device), self.points[chosen].to(device)
        targets = self.targets[chosen].to(device)
        counted = ~targets.isnan()
        return blend(grids, self.images.windows_of(rows), points)[counted], targets[counted]


def dense_images(
    model: JoinedModel,
    pairs: Sequence[Pair],
    read: Callable[[Pair], Float32[np.ndarray, "h w"]],
    settings: DenseSettings,
    *,
    role: str,
    cache: Path,
    sliding: Sliding | None = None,
    cls: bool = False,
) -> DenseImages:
    """Return pairs with their patch tokens, which are read or made below `cache`.

    The whole image is resized, by the model's own interpolation, to a square: nothing is cropped,
    and a target's pixel lies at the same share of height and width as in the image. Where windows
    are `sliding`, each of them is resized so instead. With `cls` the CLS token stands beside each
    patch token. Raises LvdError where no image can be decoded, and where the model lacks tokens.
    """
    if sliding is None:
        sizes, windows = None, whole_images(len(pairs))
        images = [ImageFile(pair.image) for pair in pairs]
    else:
        sizes = np.array(list(ahead(_size, pairs, settings.workers)), np.int32)
        boxes = [
            slide(height, width, *sliding) if height else [None] for height, width in sizes.tolist()
        ]
        images = [
            ImageFile(p.image, box) for p, some in zip(pairs, boxes, strict=True) for box in some
        ]
        windows = _windows(sizes, boxes)
    side = settings.size if sliding is None else sliding.side
    grids = [
        file_features(
            part,
            images,
            _squares(part, side, cls),
            role=role,
            cache=cache,
            batch_size=settings.batch_size,
            workers=settings.workers,
        )
        for part in model.parts
    ]
    # What decodes at one part's scale could fail at another's.
    decoded = np.all([grid.sizes > 0 for grid in grids], axis=0)
    firsts = np.cumsum(windows.counts) - np.array(windows.counts)
    whole = np.logical_and.reduceat(decoded, firsts, axis=0)
    if sizes is None:
        sizes = grids[0].sizes
    else:  # a header that lies about its picture has put the windows elsewhere
        whole &= (grids[0].sizes[firsts] == sizes).all(axis=1, keepdims=True)
    return DenseImages(pairs, [grid.values for grid in grids], sizes * whole, read, windows)


def draw(images: DenseImages, settings: DenseSettings, role: str) -> Samples:
    """Return up to `settings.points` pixels of each image, drawn from those that count.

    A head that is linear commutes with bilinear upsampling: its output at a pixel of the upsampled
    map is its output for tokens interpolated at that pixel. So these pixels' mean loss estimates
    that of all the pixels, without bias, at a thousandth of the cost.
    """
    rows, points, targets = [], [], []
    for row, target in images.targets(settings.workers, role):
        height, width = target.shape
        counted = np.flatnonzero(~np.isnan(target))
        generator = np.random.default_rng([settings.seed, row])
        drawn = generator.permutation(counted)[: settings.points]
        if not len(drawn):
            continue
        down, right = np.divmod(drawn, width)
        rows.append(row)
        place = np.full((settings.points, 2), 0.5, np.float32)
        place[: len(drawn), 0], place[: len(drawn), 1] = (
            (down + 0.5) / height,
            (right + 0.5) / width,
        )
        points.append(place)
        targets.append(np.full(settings.points, np.nan, np.float32))
        targets[-1][: len(drawn)] = target.flat[drawn]
    if len(rows) < 2:
        raise LvdError(
            f"{role}: {len(rows)} images have pixels that count: two at least are needed"
        )
    return Samples(
        images, rows, torch.from_numpy(np.stack(points)), torch.from_numpy(np.stack(targets))
    )


def pixel_centres(rows: range, height: int, width: int) -> Float[Tensor, "pixels 2"]:
    """Return the places of some rows' pixels in a picture of height by width, row by row."""
    down = (torch.arange(rows.start, rows.stop) + 0.5) / height
    right = (torch.arange(width) + 0.5) / width
    return torch.cartesian_prod(down, right)


def input_side(model: FrozenModel, size: int | None) -> int:
    """Return the multiple of the model's patch, in pixels, that is nearest to `size`, or its own."""
    side, patch = size or model.needs.size, model.needs.patch
    return max(round(side / patch), 1) * patch if patch else side


def _squares(model: FrozenModel, size: int | None, cls: bool) -> View:
    side = input_side(model, size)
    interpolation = InterpolationMode(model.needs.interpolation)
    return View(
        f"patches{' and CLS' * cls} of squares of {side}",
        partial(_square, side=side, interpolation=interpolation),
        partial(_patches, model, cls),
        round(REDUCED_DECODING_FACTOR * side),
    )


def _square(
    image: Image.Image, side: int, interpolation: InterpolationMode
) -> UInt8[np.ndarray, "side side 3"]:
    return np.array(transforms.resize(image, [side, side], interpolation))


def _patches(
    model: FrozenModel, cls: bool, pixels: UInt8[Tensor, "n 3 h w"]
) -> Float[Tensor, "n rows cols d"]:
    tokens = model.tokens(pixels)
    patches = tokens.patches
    if patches is None:
        raise LvdError(f"--model {model.name} has no patch tokens: segment and depth need some")
    if not cls:
        return patches
    if tokens.cls is None:
        raise LvdError(f"--model {model.name} has no CLS token: leave depth.cls=true away")
    beside = tokens.cls[:, -1, None, None].expand(-1, *patches.shape[1:3], -1)
    return torch.cat([beside, patches], dim=3)


def _size(pair: Pair) -> tuple[int, int]:
    """Return height and width of a pair's upright image; zeros where it is broken."""
    try:
        return upright_size(pair.image.read_bytes())
    except (OSError, ImageError):
        return 0, 0


def _windows(sizes: Int32[np.ndarray, "n 2"], boxes: Sequence[Sequence[Box | None]]) -> Windows:
    shares = [
        as_shares(box, *size) if box else (0.0, 0.0, 1.0, 1.0)
        for size, some in zip(sizes.tolist(), boxes, strict=True)
        for box in some
    ]
    return Windows([len(some) for some in boxes], torch.tensor(shares))


def _resampled(
    grids: Float[Tensor, "n r c d"], size: Sequence[int]
) -> Float[Tensor, "n rows cols d"]:
    if tuple(grids.shape[1:3]) == tuple(size):
        return grids
    moved = functional.interpolate(grids.permute(0, 3, 1, 2), tuple(size), mode="bilinear")
    return moved.permute(0, 2, 3, 1)
