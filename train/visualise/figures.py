"""The figures of a model: attention of its CLS token, colours of its patches, nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from shared.sheets import PAPER, Strip, Tile
from train.frozen.attention_maps import MissingTokensError, cls_attention, most_attended
from train.frozen.model import FrozenModel
from train.visualise.overlays import (
    blocks,
    central_square,
    cut_out,
    diverging,
    heat,
    model_pixels,
)
from train.visualise.patch_colours import patch_colours
from train.visualise.sheets import SIDE, Sheet, stacked

Pictures = Mapping[str, Image.Image]


def attention_figure(model: FrozenModel, pictures: Pictures, mass: float) -> Sheet:
    """Return the last block's CLS attention over each picture, and the patches that hold `mass` of it.

    Raises MissingTokensError where the model has no such attention.
    """
    strips = []
    for key, image in pictures.items():
        maps = cls_attention(model, model_pixels(model, [image])).cpu()
        kept = most_attended(maps, mass)[0].numpy()
        heads = maps[0].numpy()
        shown = central_square(image, SIDE)
        tiles = [
            Tile(
                stacked([shown, heat(shown, heads.mean(axis=0))]),
                "picture",
                "below: mean of the heads",
                mark=True,
            )
        ]
        for number, (head, most) in enumerate(zip(heads, kept, strict=True), start=1):
            share = f"{mass:.0%} in {most.sum():,} of {most.size:,} patches"
            picture = stacked([heat(shown, head), cut_out(shown, most)])
            tiles.append(Tile(picture, f"head {number}", share))
        strips.append(Strip(key, tuple(tiles)))
    return Sheet(
        "attention",
        f"What the CLS token looks at: {model.name}",
        (
            "Self-attention of the CLS token in the last block, head by head. Above, its softmax "
            "weights on the patches (CLS and register tokens left out, the rest divided by its "
            "sum), enlarged bilinearly; of each map, the largest weight is the brightest.",
            f"Below, the fewest patches that hold {mass:.0%} of the map (DINO, arXiv 2104.14294, "
            "section 4.2.2), the others dimmed. The first column is the picture, cut as the model "
            "gets it (which sees less of it, at its own size), and the mean of the heads' maps.",
        ),
        tuple(strips),
        facts=((str(len(heads)), "heads"), (str(model.needs.registers), "register tokens")),
        apart=True,
    )


def patch_figure(model: FrozenModel, pictures: Pictures, threshold: float) -> Sheet:
    """Return the principal components of the patch tokens, common to all pictures, as colours.

    Raises MissingTokensError where the model has no patch tokens.
    """
    found = [model.tokens(model_pixels(model, [image])).patches for image in pictures.values()]
    if found[0] is None:
        raise MissingTokensError(f"model {model.name} has no patch tokens, and no map of features")
    patches = torch.cat([tokens.cpu() for tokens in found]).numpy()
    colours = patch_colours(patches, threshold)
    extreme = float(np.abs(colours.first).max())
    tiles = []
    for place, (key, image) in enumerate(pictures.items()):
        parts = [
            central_square(image, SIDE),
            diverging(colours.first[place], extreme),
            blocks(colours.colours[place]),
        ]
        share = f"foreground: {colours.foreground[place].mean():.0%}"
        tiles.append(Tile(stacked(parts), key, share))
    return Sheet(
        "patches",
        f"Principal components of the patch tokens: {model.name}",
        (
            "Patch tokens of the last block after the final norm, of all these pictures together: "
            "equal colours are like features, across pictures too (DINOv2, arXiv 2304.07193, "
            "figure 1).",
            "Middle: the first principal component of all patches, red above and blue below its "
            "mean. Its sign is chosen so that the patches at the pictures' borders are, on average, "
            f"blue. The foreground is what exceeds {threshold:g} standard deviations. Below: the "
            "first three components of the foreground's patches alone, as red, green and blue, each "
            "from its 1st to its 99th percentile; the background is black.",
        ),
        (Strip("From the top: picture, first component, colours of the foreground", tuple(tiles)),),
    )


def neighbour_figure(
    model_name: str,
    place: str,
    pictures: Pictures,
    found: Mapping[str, Sequence[tuple[str, float]]],
    gallery: Pictures,
) -> Sheet:
    """Return a row for each picture: itself, then its neighbours `(key, cosine)` in `found`.

    `gallery` has their squares, `SIDE` pixels wide.
    """
    blank = Image.new("RGB", (SIDE, SIDE), PAPER)
    strips = []
    for key, image in pictures.items():
        tiles = [Tile(central_square(image, SIDE), "query", key, mark=True)]
        for other, cosine in found[key]:
            tiles.append(Tile(gallery.get(other, blank), f"{cosine:.3f}", other))
        strips.append(Strip("", tuple(tiles)))
    return Sheet(
        "neighbours",
        f"Nearest neighbours: {model_name}",
        (
            f"Each picture (framed) and those of {place} whose pooled features have the largest "
            "cosine with its own, the cosine under each. A picture that is itself among them finds "
            "itself first.",
        ),
        tuple(strips),
    )
