"""The figures of a model: attention of its CLS token, colours of its patches, nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from shared.pages.sheets import PAPER, Strip, Tile, with_line_above
from train.visualise.overlays import (
    blocks,
    central_square,
    cut_out,
    diverging,
    heat,
)
from train.visualise.patch_colours import lies_inside, patch_colours
from train.visualise.seen import EVEN, Seen, is_even
from train.visualise.sheets import BETWEEN, SIDE, Sheet, stacked, under

Pictures = Mapping[str, Image.Image]


def attention_figure(models: Sequence[Seen], pictures: Pictures, mass: float) -> Sheet | None:
    """Return the last block's CLS attention over each picture, and the patches that hold `mass` of it.

    Models stand one under another, picture by picture. A mask that would take nearly as many
    patches as that of even attention means nothing, and is not drawn. None where no model has
    attention.
    """
    looking = [seen for seen in models if seen.attention is not None]
    if not looking:
        return None
    attention = [seen.attention for seen in looking if seen.attention is not None]
    masks = [seen.most_attended(mass) for seen in looking]
    strips = []
    for place, (key, image) in enumerate(pictures.items()):
        shown = central_square(image, SIDE)
        for seen, every, kept in zip(looking, attention, masks, strict=True):
            maps = every[place]
            heads = [
                _head(shown, *each, mass, f"head {number}")
                for number, each in enumerate(zip(maps, kept[place], strict=True), start=1)
            ]
            mean = Tile(heat(shown, maps.mean(axis=0)), "mean of the heads")
            heading = f"{key} · {seen.model.name}" if len(looking) > 1 else key
            strips.append(Strip(heading, (Tile(shown, "picture", mark=True), mean, *heads)))
    return Sheet(
        "attention",
        f"What the CLS token looks at: {_named(looking)}",
        (
            "Self-attention of the CLS token in the last block, head by head. Above, its softmax "
            "weights on the patches (CLS and register tokens left out, the rest divided by its "
            "sum), enlarged bilinearly; of each map, the largest weight is the brightest.",
            f"Below, the fewest patches that hold {mass:.0%} of the map (DINO, arXiv 2104.14294, "
            "section 4.2.2), the others dimmed. A head that looks everywhere alike has no such "
            f"part: none is drawn where it would take more than {EVEN * mass:.0%} of the patches. The "
            "picture (framed) is cut as the models get it, who see less of it, at their own size.",
        ),
        tuple(strips),
        apart=True,
    )


def _head(
    shown: Image.Image,
    head: Float[np.ndarray, "rows cols"],
    kept: Bool[np.ndarray, "rows cols"],
    mass: float,
    name: str,
) -> Tile:
    share = f"{mass:.0%} in {kept.sum():,} of {kept.size:,} patches"
    if is_even(kept, mass):
        return Tile(heat(shown, head), name, f"even, no mask: {share}")
    return Tile(stacked([heat(shown, head), cut_out(shown, kept)]), name, share)


def patch_figure(models: Sequence[Seen], pictures: Pictures, threshold: float) -> Sheet | None:
    """Return the principal components of the patch tokens, common to all pictures, as colours.

    All models stand side by side under one picture. A foreground that the pictures' borders have as
    much of as their insides means nothing: then all patches are coloured. None where no model has
    patch tokens.
    """
    having = [seen for seen in models if seen.patches is not None]
    if not having:
        return None
    columns, shares = [], []
    for seen, patches in ((seen, seen.patches) for seen in having if seen.patches is not None):
        name = seen.model.name if len(having) > 1 else ""
        colours = patch_colours(patches, threshold)
        if apart := lies_inside(colours.foreground):
            share = [f"foreground: {each.mean():.0%}" for each in colours.foreground]
        else:
            share = ["no foreground"] * len(pictures)
        painted = colours if apart else patch_colours(patches, -np.inf)
        extreme = float(np.abs(colours.first).max())
        columns.append(
            [
                _under_name(stacked([diverging(first, extreme), blocks(colour)]), name)
                for first, colour in zip(colours.first, painted.colours, strict=True)
            ]
        )
        shares.append(share)
    tiles = [
        Tile(
            under(central_square(image, SIDE), [column[place] for column in columns]),
            key,
            " · ".join(dict.fromkeys(share[place] for share in shares)),
        )
        for place, (key, image) in enumerate(pictures.items())
    ]
    return Sheet(
        "patches",
        f"Principal components of the patch tokens: {_named(having)}",
        (
            "From the top: picture, first component, colours of the foreground. Patch tokens of the "
            "last block after the final norm, of all these pictures together: equal colours are "
            "like features, across pictures too (DINOv2, arXiv 2304.07193, figure 1).",
            "Middle: the first principal component of all patches, red above and blue below its "
            "mean. Its sign is chosen so that the patches at the pictures' borders are, on average, "
            f"blue. The foreground is what exceeds {threshold:g} standard deviations. Below: the "
            "first three components of the foreground's patches alone, as red, green and blue, each "
            "from its 1st to its 99th percentile; the background is black. A foreground that does "
            "not lie inside (its share of the inner patches is not 10 points above that of the "
            "border) means nothing: then all patches are coloured, and none is black.",
        ),
        (Strip("", tuple(tiles)),),
    )


def _under_name(column: Image.Image, model: str) -> Image.Image:
    return with_line_above(column, model, BETWEEN) if model else column


def _named(models: Sequence[Seen]) -> str:
    return " · ".join(seen.model.name for seen in models)


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
