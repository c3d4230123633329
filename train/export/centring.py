"""Centres a backbone: its CLS tokens get their mean at zero, so that cosines are spread about zero.

The tokens of a trained network share a large common part, which is in every cosine and says nothing.
It is taken off the bias of the final norm, so the network stays a plain one of timm's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from shared.datasets import DatasetSettings, list_parts
from shared.embedders import resolve_device, settings_for_folder
from shared.errors import LvdError
from shared.evaluation_transform import EvaluationTransform
from shared.images import ImageError, decode
from shared.parts import PartReader
from shared.progress import stage_bar
from shared.timm_embedder import build_timm

MOST = 5000
"""Images that are looked at: as many of each part, chosen by a seed."""
_BATCH = 64


def mean_token(folder: Path, images: str) -> Float[Tensor, " d"]:
    """Return the mean of what the model of `folder` gives for at most `MOST` images.

    `images` is whatever `--shards` may be. Images that cannot be decoded are left out. Raises
    LvdError where there is none.
    """
    model, transform, device = frozen(folder)
    total, count = torch.zeros(model.num_features, dtype=torch.float64), 0
    with torch.inference_mode():
        for pixels in pixel_batches(images, transform, device):
            total += model(pixels).double().sum(0).cpu()
            count += len(pixels)
    if not count:
        raise LvdError(f"--centre {images}: none of the images can be decoded: name others")
    return (total / count).float()


def frozen(folder: Path) -> tuple[nn.Module, EvaluationTransform, str]:
    """Return a model folder's model in float32, what it sees images by, and its device."""
    settings = resolve_device(settings_for_folder(folder))
    return *build_timm(settings), settings.device


def pixel_batches(
    images: str, transform: EvaluationTransform, device: str
) -> Iterator[Float[Tensor, "n 3 h w"]]:
    """Yield the model's input for at most `MOST` images."""
    held: list[np.ndarray] = []
    for picture in chain(pictures(images, transform), [None]):
        if picture is not None:
            held.append(transform.prepare(picture))
        if held and (picture is None or len(held) == _BATCH):
            pixels = torch.from_numpy(np.stack(held)).permute(0, 3, 1, 2).to(device)
            yield transform.normalised(pixels)
            held = []


def pictures(images: str, transform: EvaluationTransform) -> Iterator[Image.Image]:
    """Yield at most `MOST` images, decoded; those that cannot be are left out."""
    parts = list_parts("images", DatasetSettings(path=images))
    rng, left = np.random.default_rng(0), MOST
    if len(parts) > MOST:
        parts = [parts[place] for place in np.sort(rng.permutation(len(parts))[:MOST]).tolist()]
    with tempfile.TemporaryDirectory() as scratch, stage_bar("look", len(parts), "parts") as bar:
        for part in parts:
            with PartReader(part, Path(scratch)) as reader:
                share = rng.permutation(len(reader.members))[: min(left, -(-MOST // len(parts)))]
                left -= len(share)
                for member in (reader.members[place] for place in sorted(share.tolist())):
                    with suppress(ImageError):
                        yield decode(reader.read(member), reduce_to=transform.reduce_to)
            bar.advance()
