"""Keeps small pictures of what the teacher sees, at a few steps of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from shared.embedders.evaluation_transform import square
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.pictures.images import ImageError, decode
from shared.progress import warn
from train.data.index import SampleIndex
from train.distributed.shards import whole_tensors
from train.frozen.model import FrozenModel, Needs
from train.model.backbone import build_backbone
from train.monitoring.look_files import PICTURES, look_file
from train.monitoring.settings import LookSettings
from train.system import System
from train.visualise.overlays import central_square
from train.visualise.overview import glance
from train.visualise.seen import see
from train.visualise.sheets import SIDE, jpeg

TRIED = 4
"""Images looked at for each picture wanted: some may be broken."""


class Looks:
    """The pictures of a run: the same images each time, evenly spread over the data."""

    def __init__(
        self, settings: LookSettings, system: System, index: SampleIndex, out: Path, steps: int
    ) -> None:
        self._settings, self._system, self._index, self._out = settings, system, index, out
        self._due = due(steps, settings.times)
        self._pictures: dict[str, Image.Image] = {}

    def take(self, done: int) -> None:
        """Keep the pictures behind `done` steps, where they are due: every process must call it.

        They are one JPEG for attention and one for patch colours. Features that are not finite
        give none, and a warning.
        """
        if done not in self._due:
            return
        first = self._system.ranks.first
        tensors = whole_tensors(self._system.teacher.backbone)
        state = {name: whole for name, whole in tensors if first}
        if not first:
            return
        try:
            pictures = self._pictures or self._chosen()
            rows = glance(see(self._frozen(state), pictures), pictures)
        except LvdError as error:
            warn(f"no pictures of step {done:,}: {error}")
            return
        self._pictures = pictures
        shown = [central_square(image, SIDE) for image in pictures.values()]
        _write(self._out, {PICTURES: shown} | {look_file(what, done): rows[what] for what in rows})

    def _chosen(self) -> dict[str, Image.Image]:
        """Return the squares of the first images that can be read, of some spread over the data."""
        wanted, size = self._settings.pictures, self._system.recipe.crops.global_size
        tried = range(0, len(self._index), max(1, len(self._index) // (TRIED * wanted)))
        found: dict[str, Image.Image] = {}
        # The others stand in for those that are broken.
        for number in (*tried[::TRIED], *tried):
            if len(found) == min(wanted, len(self._index)):
                break
            try:
                image = decode(self._index.read(number), reduce_to=max(size, SIDE))
            except ImageError:
                continue
            found[self._index.key(number)] = central_square(
                image, min(*image.size, max(size, SIDE))
            )
        if not found:
            raise LvdError("none of the images that were tried can be decoded")
        return found

    def _frozen(self, state: Mapping[str, Tensor]) -> FrozenModel:
        """Return the teacher as a module of its own, which shares its weights and none of its state."""
        recipe, device = self._system.recipe, self._system.ranks.device
        size = recipe.crops.global_size
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            backbone = build_backbone(recipe.model, image_size=size, masked=False)
        own = {name: state[name].float() for name in backbone.state_dict()}
        backbone.load_state_dict(own, assign=True)
        transform = square(size, recipe.model.crop_mode)
        needs = Needs(
            size=size,
            mean=transform.mean,
            std=transform.std,
            interpolation="bicubic",
            crop=1.0,
            pooling="token",
            patch=backbone.patch,
            registers=backbone.prefix_tokens - 1,
        )
        settings = EmbedderSettings(
            kind="timm", model="any", precision="float32", device=device.type
        )
        vit = backbone.vit.requires_grad_(False).eval()
        return FrozenModel("the teacher", vit, transform, needs, settings, identity=None)


def due(steps: int, times: int) -> frozenset[int]:
    """Return the numbers of steps behind which pictures are kept: both ends, and evenly between."""
    if times < 2:
        return frozenset([steps][:times])
    return frozenset(round(steps * time / (times - 1)) for time in range(times))


def _write(out: Path, rows: Mapping[str, Sequence[Image.Image]]) -> None:
    for name, images in rows.items():
        path = out / name
        path.parent.mkdir(exist_ok=True)
        beside = path.with_name(f".{path.name}")
        beside.write_bytes(jpeg(_side_by_side(images)))
        beside.replace(path)


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (SIDE * len(images), SIDE))
    for place, image in enumerate(images):
        canvas.paste(image, (SIDE * place, 0))
    return canvas
