"""Says without labels whether a network learns: does it know two views for the same picture?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from shared.pictures.images import ImageError
from train.data.crops import Views, normalise, stack_views
from train.data.index import SampleIndex
from train.data.pictures import picture
from train.data.settings import CropSettings
from train.seeds import derive

MOST_IMAGES = 256
_AT_ONCE = 64


@torch.no_grad()
def recognition(
    features: Callable[[Tensor], Tensor],
    index: SampleIndex,
    crops: CropSettings,
    seed: int,
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> float | None:
    """Return the share of pictures whose second view is nearest to their own first view.

    Of up to `MOST_IMAGES` pictures, spread evenly over the data, by the cosine of the CLS tokens of
    two global views as training draws them, from seeds that training does not use. The views are
    the same on every call. None where fewer than two pictures can be read.
    """
    finished = crops.model_copy(update={"device": "cpu"})
    draw = Views(finished, derive(seed, "recognition"))
    pairs = []
    for number in range(0, len(index), max(1, len(index) // MOST_IMAGES)):
        try:
            image = picture(index.read(number), draw.reduce_to)
        except ImageError:
            continue
        pairs.append(stack_views([draw(image, number, 0)])[0])
        if len(pairs) == MOST_IMAGES:
            break
    if len(pairs) < 2:
        return None
    views = torch.stack(pairs, 1)
    with autocast:
        tokens = [
            features(normalise(block.to(device))).float()
            for block in views.flatten(0, 1).split(_AT_ONCE)
        ]
    first, second = nn.functional.normalize(torch.cat(tokens), dim=-1).chunk(2)
    nearest = (second @ first.T).argmax(1)
    own = torch.arange(len(nearest), device=nearest.device)
    return (nearest == own).float().mean().item()
