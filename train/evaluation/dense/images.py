"""What segmentation and depth share: patch tokens of pairs, and what their pixels ought to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Int32, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from shared.embedders import REDUCED_DECODING_FACTOR
from shared.errors import LvdError
from shared.images import ImageError
from shared.progress import warn
from train.evaluation.dense.pairs import Pair
from train.evaluation.file_features import ImageFile, View, ahead, file_features
from train.evaluation.settings import DenseSettings

if TYPE_CHECKING:
    from train.frozen.model import FrozenModel, JoinedModel


@dataclass(frozen=True)
class DenseImages:
    """Pairs seen through a (joined) model: a grid of patch tokens for each image, and a target."""

    pairs: Sequence[Pair]
    grids: Sequence[Float16[np.ndarray, "n rows cols d"]]
    """Of each part of the model, on disk."""
    sizes: Int32[np.ndarray, "n 2"]
    """Height and width of each image, upright; 0 where it could not be read."""
    read: Callable[[Pair], Float32[np.ndarray, "h w"]]
    """Gives a pair's target, NaN where a pixel counts for nothing; ImageError if it is broken."""

    def tokens(self, rows: Sequence[int]) -> Float[Tensor, "n rows cols d"]:
        """Return the tokens of some images; of several parts, resampled to the finest grid.

        Coarser grids are resampled bilinearly and all are concatenated in the order of the parts.
        """
        grids = [torch.from_numpy(grid[np.asarray(rows)]).float() for grid in self.grids]
        finest = [max(grid.shape[axis] for grid in grids) for axis in (1, 2)]
        return torch.cat([_resampled(grid, finest) for grid in grids], dim=3)

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
        grids = self.images.tokens([self.rows[n] for n in chosen]).to(device)
        targets = self.targets[chosen].to(device)
        counted = ~targets.isnan()
        return at_points(grids, self.points[chosen].to(device))[counted], targets[counted]


def dense_images(
    model: JoinedModel,
    pairs: Sequence[Pair],
    read: Callable[[Pair], Float32[np.ndarray, "h w"]],
    settings: DenseSettings,
    *,
    role: str,
    cache: Path,
) -> DenseImages:
    """Return pairs with their patch tokens, which are read or made below `cache`.

    The whole image is resized, by the model's own interpolation, to a square: nothing is cropped,
    and a target's pixel lies at the same share of height and width as in the image. Raises LvdError
    where no image can be decoded, and where the model has no patch tokens.
    """
    images = [ImageFile(pair.image) for pair in pairs]
    grids = [
        file_features(
            part,
            images,
            _whole_image(part, settings.size),
            role=role,
            cache=cache,
            batch_size=settings.batch_size,
            workers=settings.workers,
        )
        for part in model.parts
    ]
    # What decodes at one part's scale could fail at another's.
    whole = np.all([grid.sizes > 0 for grid in grids], axis=0)
    return DenseImages(pairs, [grid.values for grid in grids], grids[0].sizes * whole, read)


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


def at_points(
    grids: Float[Tensor, "n rows cols d"], points: Float[Tensor, "n points 2"]
) -> Float[Tensor, "n points d"]:
    """Return grids interpolated bilinearly at points, given as shares of height and width.

    At the pixel centres of a larger picture this equals `interpolate` to its size with
    align_corners=False: beyond the outermost cells' centres the outermost cells count.
    """
    places = (2 * points - 1).flip(-1)[:, :, None]  # grid_sample wants right, down in -1 .. 1
    sampled = functional.grid_sample(
        grids.permute(0, 3, 1, 2), places, "bilinear", padding_mode="border", align_corners=False
    )
    return sampled[..., 0].transpose(1, 2)


def pixel_centres(rows: range, height: int, width: int) -> Float[Tensor, "pixels 2"]:
    """Return the places of some rows' pixels in a picture of height by width, row by row."""
    down = (torch.arange(rows.start, rows.stop) + 0.5) / height
    right = (torch.arange(width) + 0.5) / width
    return torch.cartesian_prod(down, right)


def _whole_image(model: FrozenModel, size: int | None) -> View:
    side = size or model.needs.size
    if model.needs.patch:
        side = max(round(side / model.needs.patch), 1) * model.needs.patch
    interpolation = InterpolationMode(model.needs.interpolation)
    return View(
        f"patches of squares of {side}",
        partial(_square, side=side, interpolation=interpolation),
        partial(_patches, model),
        round(REDUCED_DECODING_FACTOR * side),
    )


def _square(
    image: Image.Image, side: int, interpolation: InterpolationMode
) -> UInt8[np.ndarray, "side side 3"]:
    return np.array(transforms.resize(image, [side, side], interpolation))


def _patches(
    model: FrozenModel, pixels: UInt8[Tensor, "n 3 h w"]
) -> Float[Tensor, "n rows cols d"]:
    patches = model.tokens(pixels).patches
    if patches is None:
        raise LvdError(f"--model {model.name} has no patch tokens: segment and depth need some")
    return patches


def _resampled(
    grids: Float[Tensor, "n r c d"], size: Sequence[int]
) -> Float[Tensor, "n rows cols d"]:
    if tuple(grids.shape[1:3]) == tuple(size):
        return grids
    moved = functional.interpolate(grids.permute(0, 3, 1, 2), tuple(size), mode="bilinear")
    return moved.permute(0, 2, 3, 1)
