"""Draws all figures of a model and writes them as PNG files and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from shared.errors import LvdError
from shared.images import decode
from shared.progress import StageBar, say, stage_bar, warn
from train.evaluation.features import bank
from train.evaluation.neighbours import neighbours
from train.frozen.attention_maps import MissingTokensError
from train.frozen.loading import load_models
from train.frozen.model import FrozenModel, JoinedModel
from train.visualise.figures import attention_figure, neighbour_figure, patch_figure
from train.visualise.output import write_figures
from train.visualise.overview import overview
from train.visualise.page import figures_page
from train.visualise.pictures import Pictures, first_pictures, squares_of
from train.visualise.settings import VisualiseSettings
from train.visualise.sheets import SIDE, Sheet
from train.visualise.stored import stored_neighbours, stored_vectors

FIGURES = 2
"""Of each model: attention and patches."""
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

    They show the first pictures of `images` by key, and with `gallery` their nearest neighbours in
    it; the page names the `command` that made it. A figure that the model has nothing for is left
    out, which the page says. The same call gives the same bytes, wherever `out` is. Raises LvdError
    where `out` holds anything else, where there are no pictures, and where nothing can be drawn.
    """
    pictures = first_pictures("--images", images, settings.pictures, max(size or 0, LARGEST_SQUARE))
    if pictures.more:
        say(f"the first {settings.pictures} pictures are drawn: more with --set pictures=N")
    [model] = load_models([name], size=size)
    sheets, facts, missing = [], [(str(len(pictures.squares)), "pictures")], []
    several = len(model.parts) > 1
    with stage_bar("draw", FIGURES * len(model.parts), "figures") as bar:
        for number, part in enumerate(model.parts, start=1):
            drawn, said = _figures(part, pictures, settings, bar)
            of = f" of {part.name}" if several else ""
            facts += [(value, f"{what}{of}") for value, what in _facts(part, drawn)]
            sheets += [replace(s, name=f"{s.name}-{number}") if several else s for s in drawn]
            missing += said
        if glance := overview(model.parts, pictures.squares):
            sheets.insert(0, glance)
    if gallery is not None:
        sheets.append(_neighbour_sheet(model, pictures, gallery, cache, size, settings))
    if not sheets:
        raise LvdError(f"model {name} has neither attention nor patch tokens: give --neighbours")
    remarks = _remarks(pictures, images, missing)
    names = [part.name for part in model.parts]
    title = f"What {' and '.join(names)} see{'' if several else 's'}"
    page = figures_page(title, facts, remarks, sheets, command)
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


def _figures(
    model: FrozenModel, pictures: Pictures, settings: VisualiseSettings, bar: StageBar
) -> tuple[list[Sheet], list[str]]:
    """Return the figures of attention and patches, and why one is missing."""
    sheets, missing = [], []
    for figure, value in (
        (attention_figure, settings.mass),
        (patch_figure, settings.foreground),
    ):
        try:
            sheets.append(figure(model, pictures.squares, value))
        except MissingTokensError as error:
            warn(str(error))
            missing.append(str(error))
        bar.advance()
    return sheets, missing


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


def _facts(model: FrozenModel, drawn: Sequence[Sheet]) -> list[tuple[str, str]]:
    needs = model.needs
    facts = [(f"{needs.size} px", "input side")]
    if needs.patch:
        grid = needs.size // needs.patch
        facts += [(f"{needs.patch} px", "patch side"), (f"{grid} × {grid}", "patches of a picture")]
    return facts + [fact for sheet in drawn for fact in sheet.facts]


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
