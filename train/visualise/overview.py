"""One small sheet that shows at a glance what models see: picture, attention and patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice

import numpy as np
import torch
from PIL import Image

from shared.sheets import Strip, Tile
from train.evaluation.attention_maps import MissingTokensError, cls_attention
from train.evaluation.frozen import FrozenModel
from train.visualise.overlays import blocks, central_square, heat, model_pixels
from train.visualise.patch_colours import patch_colours
from train.visualise.sheets import SIDE, Sheet, stacked

MOST = 6
"""Pictures: as many as stand in one line that a page of text has room for."""
NAME = "overview"
_WORDS = {"attention": "attention", "patches": "principal components of the patches"}


def overview(models: Sequence[FrozenModel], pictures: Mapping[str, Image.Image]) -> Sheet | None:
    """Return the first pictures with each model's attention and patch colours under them.

    What a model has not is left out; None where no model has anything.
    """
    chosen = dict(islice(pictures.items(), MOST))
    shown = {key: central_square(image, SIDE) for key, image in chosen.items()}
    strips = []
    for model in models:
        if maps := {_WORDS[what]: row for what, row in glance(model, chosen).items()}:
            columns = zip(*maps.values(), strict=True)
            tiles = [
                Tile(stacked([shown[key], *column]), key)
                for key, column in zip(chosen, columns, strict=True)
            ]
            heading = f"{model.name}: from the top, the picture, {', '.join(maps)}"
            strips.append(Strip(heading, tuple(tiles)))
    if not strips:
        return None
    return Sheet(
        NAME,
        "What the models see, at a glance",
        (
            "From the top: the picture; what the CLS token of the last block looks at, the mean of "
            "its heads, bright where it looks most; the first three principal components of the "
            "patch tokens of all these pictures together, as red, green and blue: like colours are "
            "like features.",
        ),
        tuple(strips),
        apart=True,
    )


def glance(model: FrozenModel, pictures: Mapping[str, Image.Image]) -> dict[str, list[Image.Image]]:
    """Return a square of each picture by what it shows: `attention` and `patches`.

    The mean of the heads' attention lies over the picture; the patches have the colours of their
    principal components, which all pictures share. What the model has not is left out.
    """
    found = {}
    for what, draw in (("attention", _attention), ("patches", _colours)):
        with suppress(MissingTokensError):
            found[what] = draw(model, pictures)
    return found


def _attention(model: FrozenModel, pictures: Mapping[str, Image.Image]) -> list[Image.Image]:
    return [
        heat(
            central_square(image, SIDE),
            cls_attention(model, model_pixels(model, [image]))[0].mean(0).cpu().numpy(),
        )
        for image in pictures.values()
    ]


def _colours(model: FrozenModel, pictures: Mapping[str, Image.Image]) -> list[Image.Image]:
    found = [model.tokens(model_pixels(model, [image])).patches for image in pictures.values()]
    if found[0] is None:
        raise MissingTokensError(f"model {model.name} has no patch tokens, and no map of features")
    patches = torch.cat([tokens.cpu() for tokens in found]).numpy()
    return [blocks(colours) for colours in patch_colours(patches, -np.inf).colours]
