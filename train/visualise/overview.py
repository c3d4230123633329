"""One small sheet that shows at a glance what models see: picture, attention and patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
from PIL import Image

from shared.pages.sheets import Strip, Tile, with_line_above
from train.visualise.overlays import blocks, central_square, heat
from train.visualise.patch_colours import patch_colours
from train.visualise.seen import Seen
from train.visualise.sheets import BETWEEN, SIDE, Sheet, stacked, under

MOST = 6
"""Squares in a line of the sheet, which is what a page of text has room for."""
NAME = "overview"
WORDS = {"attention": "attention", "patches": "patch features (PCA)"}
"""The maps of `glance`, as they are called on the sheet."""


def overview(models: Sequence[Seen], pictures: Mapping[str, Image.Image]) -> Sheet | None:
    """Return the first pictures, each with the attention and patch colours of all models under it.

    What a model has not is left out; None where no model has anything.
    """
    chosen = dict(islice(pictures.items(), max(1, MOST // len(models))))
    drawn = [(seen.model.name, glance(seen.first(len(chosen)), chosen)) for seen in models]
    drawn = [(name, maps) for name, maps in drawn if maps]
    if not drawn:
        return None
    names = [name for name, _ in drawn]
    several = len(names) > 1
    tiles = [
        Tile(
            under(
                central_square(image, SIDE),
                [
                    _column(
                        {what: row[place] for what, row in maps.items()}, name if several else ""
                    )
                    for name, maps in drawn
                ],
            ),
            key,
        )
        for place, (key, image) in enumerate(chosen.items())
    ]
    return Sheet(
        NAME,
        f"At a glance: {' · '.join(names)}",
        (
            f"From the top: the picture; {'side by side, ' if several else ''}what the CLS token of "
            "the last block looks at, the mean of its heads, bright where it looks most; the first "
            "three principal components of the patch tokens of all these pictures, as red, green and "
            "blue: like colours are like features.",
        ),
        (Strip("", tuple(tiles)),),
        apart=True,
    )


def _column(maps: Mapping[str, Image.Image], model: str) -> Image.Image:
    """Return what a model sees in a picture, each map under its name, all under the model's."""
    column = stacked([with_line_above(maps[what], WORDS[what], BETWEEN) for what in maps])
    return with_line_above(column, model, BETWEEN) if model else column


def glance(seen: Seen, pictures: Mapping[str, Image.Image]) -> dict[str, list[Image.Image]]:
    """Return a square of each picture by what it shows: `attention` and `patches`.

    The mean of the heads' attention lies over the picture; the patches have the colours of their
    principal components, which all pictures share. What the model has not is left out.
    """
    found = {}
    if seen.attention is not None:
        found["attention"] = [
            heat(central_square(image, SIDE), maps.mean(0))
            for image, maps in zip(pictures.values(), seen.attention, strict=True)
        ]
    if seen.patches is not None:
        found["patches"] = [blocks(c) for c in patch_colours(seen.patches, -np.inf).colours]
    return found
