"""Tells what a model's name means: a folder, a checkpoint of ours, or a model of timm or open_clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.embedders.embedder import settings_for_folder
from shared.embedders.settings import BUILT_IN, BUNDLED, HUB, LOCAL
from shared.errors import LvdError
from train.persistence.marks import is_of_a_run

TIMM, OPEN_CLIP, UNTRAINED, PIXELS = "timm:", "open_clip:", "untrained:", "pixels"

REMEDY = (
    "give a model folder, the OUT or a step folder of a run, bundled or bundled-copies, a timm name, "
    "ARCH:TAG of open_clip, pixels, or untrained:NAME"
)


@dataclass(frozen=True)
class ModelName:
    """One model, as the user gave it, and where it is to be had."""

    given: str
    kind: Literal["timm", "open_clip", "trained", "pixels"]
    model: str
    """What the library calls it, or a folder (`local-dir:` where it is a model folder)."""
    tag: str | None = None
    """Of open_clip's weights."""
    trained: bool = True
    """Whether its weights are wanted, rather than random ones."""


def parse_names(given: str) -> list[ModelName]:
    """Return the models that a name joins with `+`; a path that exists may hold one.

    Raises LvdError where a part is empty, or a path at which there is no model.
    """
    path = given.removeprefix(UNTRAINED)
    parts = [given] if Path(path).expanduser().exists() else given.split("+")
    return [_parse(part.strip()) for part in parts]


def _parse(given: str) -> ModelName:
    name = given.removeprefix(UNTRAINED)
    trained = name == given
    if not name or (name == PIXELS and not trained):
        raise LvdError(f"--model {given!r} names no model: {REMEDY}")
    if name == PIXELS:
        return ModelName(given, "pixels", PIXELS)
    if (built_in := name.removeprefix(BUILT_IN)) in BUNDLED:
        return ModelName(given, "timm", f"{BUILT_IN}{built_in}", trained=trained)
    if name.startswith((TIMM, HUB)):
        return ModelName(given, "timm", name.removeprefix(TIMM), trained=trained)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _in_folder(given, folder, trained)
    if name.startswith(OPEN_CLIP + HUB):
        return ModelName(given, "open_clip", name.removeprefix(OPEN_CLIP), trained=trained)
    if ":" in name:
        model, _, tag = name.removeprefix(OPEN_CLIP).partition(":")
        return ModelName(given, "open_clip", model, tag or None, trained)
    if "/" in name or folder.exists():
        raise LvdError(f"--model {given}: there is no such folder; {REMEDY}")
    return ModelName(given, "timm", name, trained=trained)


def _in_folder(given: str, folder: Path, trained: bool) -> ModelName:
    """Tell a run and its checkpoints from a model folder."""
    if is_of_a_run(folder):
        return ModelName(given, "trained", str(folder), trained=trained)
    is_clip = settings_for_folder(folder).kind == "open_clip"
    kind: Literal["timm", "open_clip"] = "open_clip" if is_clip else "timm"
    return ModelName(given, kind, f"{LOCAL}{folder}", trained=trained)
