"""Draws all figures of a model and writes them as PNG files and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from shared.errors import LvdError
from shared.pictures.images import decode
from shared.progress import say, stage_bar, warn
from train.evaluation.features import bank
from train.evaluation.neighbours import neighbours
from train.frozen.loading import load_models
from train.frozen.model import JoinedModel
from train.visualise.figures import attention_figure, neighbour_figure, patch_figure
from train.visualise.judgement import judge
from train.visualise.output import write_figures
from train.visualise.overview import overview
from train.visualise.page import figures_page
from train.visualise.pictures import Pictures, first_pictures, squares_of
from train.visualise.seen import Seen, see
from train.visualise.settings import VisualiseSettings
from train.visualise.sheets import SIDE, Sheet
from train.visualise.stored import stored_neighbours, stored_vectors

LARGEST_SQUARE = 1024
"""Pixels of the side of a picture that is kept, unless the model's input is larger."""


def draw(
    name: str,
    images: str,
    gallery: str | None,
    out: Path,
    cache: Path,
    *,
    size: int | None,
    settings: VisualiseSettings,
    command: str,
) -> Path:
    """Write the figures of the model `name` to the folder `out` and return its page's path.

    All models stand beside or under the same pictures. They show the first pictures of `images` by
    key, and with `gallery` their nearest neighbours in it; the page names the `command` that made
    it. A figure that the model has nothing for is left out, which the page says. The same call
    gives the same bytes, wherever `out` is. Raises LvdError where `out` holds anything else, where
    there are no pictures, and where nothing can be drawn.
    """
    pictures = first_pictures("--images", images, settings.pictures, max(size or 0, LARGEST_SQUARE))
    if pictures.more:
        say(f"the first {settings.pictures} pictures are drawn: more with --set pictures=N")
    [model] = load_models([name], size=size)
    with stage_bar("draw", len(model.parts), "models") as bar:
        seen = []
        for part in model.parts:
            seen.append(see(part, pictures.squares))
            bar.advance()
    missing = list(dict.fromkeys(why for each in seen for why in each.missing))
    for why in missing:
        warn(why)
    figures = (
        overview(seen, pictures.squares),
        attention_figure(seen, pictures.squares, settings.mass),
        patch_figure(seen, pictures.squares, settings.foreground),
    )
    sheets = [figure for figure in figures if figure is not None]
    if gallery is not None:
        sheets.append(_neighbour_sheet(model, pictures, gallery, cache, size, settings))
    if not sheets:
        raise LvdError(f"model {name} has neither attention nor patch tokens: give --neighbours")
    names = [part.name for part in model.parts]
    page = figures_page(
        f"What {' and '.join(names)} see{'' if len(names) > 1 else 's'}",
        [_facts(each) for each in seen],
        _remarks(pictures, images, missing),
        sheets,
        [judge(each, settings.mass) for each in seen],
        command,
    )
    files = {"index.html": page.encode()}
    for sheet in sheets:
        files |= sheet.pngs()
    known = {
        "model": name,
        "fingerprint": model.fingerprint,
        "needs": [asdict(part.needs) for part in model.parts],
        "settings": settings.model_dump(mode="json"),
        "pictures": list(pictures.squares),
        "broken": pictures.broken,
        "reasons": pictures.reasons,
        "command": command,
    }
    write_figures(out, files, known)
    return out / "index.html"


def _neighbour_sheet(
    model: JoinedModel,
    pictures: Pictures,
    gallery: str,
    cache: Path,
    size: int | None,
    settings: VisualiseSettings,
) -> Sheet:
    queries = torch.cat([_pooled(model, data) for data in pictures.data.values()])
    if stored := stored_vectors(model.name, gallery, size):
        nearest = stored_neighbours(queries, stored, settings.nearest)
    else:
        there = bank(
            model,
            gallery,
            role="--neighbours",
            cache=cache,
            batch_size=settings.batch_size,
            workers=settings.workers,
            labelled=False,
        )
        cosines, rows = neighbours(queries, there.pooled, settings.nearest)
        nearest = [
            [(there.keys[row], cosine) for row, cosine in zip(*best, strict=True)]
            for best in zip(rows.tolist(), cosines.tolist(), strict=True)
        ]
    found = dict(zip(pictures.squares, nearest, strict=True))
    wanted = {key for best in found.values() for key, _ in best}
    return neighbour_figure(
        model.name,
        gallery,
        pictures.squares,
        found,
        squares_of("--neighbours", gallery, wanted, SIDE),
    )


def _pooled(model: JoinedModel, data: bytes) -> torch.Tensor:
    """Return an image's features as those of a bank: each part's L2-normalised, concatenated."""
    parts = []
    for part in model.parts:
        image = decode(data, reduce_to=part.transform.reduce_to)
        pixels = torch.from_numpy(np.array(part.prepare(image))).permute(2, 0, 1)
        parts.append(normalize(part.tokens(pixels[None]).pooled.float().cpu(), dim=1))
    return torch.cat(parts, dim=1)


def _facts(seen: Seen) -> list[str]:
    """Return a model's row of the table, as `HEADINGS` name it."""
    needs, heads = seen.model.needs, seen.attention
    grid = f"{needs.size // needs.patch} × {needs.size // needs.patch}" if needs.patch else "none"
    return [
        seen.model.name,
        f"{needs.size} px",
        f"{grid} of {needs.patch} px" if needs.patch else grid,
        "none" if heads is None else str(heads.shape[1]),
        str(needs.registers),
        needs.pooling,
    ]


def _remarks(pictures: Pictures, images: str, missing: Sequence[str]) -> list[str]:
    remarks = ["Of each picture the central square is shown, resized to the model's input."]
    if pictures.more:
        remarks.append(
            f"The first {len(pictures.squares)} pictures of {images}, by key; more follow."
        )
    remarks += [f"Left out: {what}." for what in missing]
    if pictures.broken:
        named = "; ".join(f"{key}: {reason}" for key, reason in pictures.reasons.items())
        more = "; ..." if pictures.broken > len(pictures.reasons) else ""
        remarks.append(f"{pictures.broken} images cannot be decoded ({named}{more}).")
    return remarks
