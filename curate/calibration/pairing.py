"""Warns of thresholds that were measured for another embedder than the one they are used with.

A cosine means nothing by itself: 0.7 finds every copy with one model, and calls all images copies
with another.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from curate.calibration.stored import declared_in_folder, input_size, read_stored
from curate.calibration.thresholds import CALIBRATED, is_number, is_wanted_of_folder
from shared.embedders.embedder import local_folder, settings_for_folder
from shared.embedders.settings import DEFAULTS, EmbedderSettings, in_folder
from shared.errors import LvdError

if TYPE_CHECKING:
    from curate.request import Request

BY_ITSELF = {
    "dedup": "--set dedup.threshold=auto",
    "retrieve": "--set retrieve.threshold=auto",
    "holdout": "--set holdout.threshold=null",
}
"""What lets a threshold be found for the embedder that is used."""


def wrong_pairings(request: Request) -> list[str]:
    """Return a line for each threshold that is not of the embedder whose vectors it is used with.

    Each names both and what to do. Raises LvdError where a model folder's own cannot be read.
    """
    lines = [*_of_the_pipeline(request)]
    for name in CALIBRATED:
        lines += _of_the_entry(request, name)
    lines += _of_the_folder(request)
    return list(dict.fromkeys(lines))


def _of_the_pipeline(request: Request) -> Iterator[str]:
    """Numbers that stand in the pipeline, or that this call sets."""
    configuration = request.configuration
    written = configuration.file["pipelines"][request.pipeline] or {}
    for name, kind, value, remedy in _numbers(request):
        used = request.embedders[kind]
        own = (written.get(kind) or {}).get("embedder") or written.get("embedder") or DEFAULTS[kind]
        foreign = not _same_network(_in_file(request, own), used.settings)
        if foreign and not _overridden(request, f"pipelines.{request.pipeline}.{name}.threshold"):
            yield (
                f"{name}.threshold {value} of pipeline {request.pipeline} in "
                f"{configuration.path} is for its embedder {own}, not for {_now(used.name, own)}: "
                f"say {remedy}, or a number that was measured for it"
            )
        elif owner := _declared_with_another(request, kind, value):
            yield (
                f"{name}.threshold {value} is the one of embedder {owner}, not of {used.name}: "
                f"say {remedy}, or a number that was measured for it"
            )


def _numbers(request: Request) -> Iterator[tuple[str, str, float, str]]:
    """Yield the numbers of a pipeline's sections: where, by whose embedder, which, and the remedy."""
    for name, remedy in BY_ITSELF.items():
        value = getattr(request.settings, name).threshold
        if is_number(value):
            yield name, "dedup" if name == "holdout" else name, value, remedy
    for seed in request.seeds:
        own = request.settings.seeds.get(seed.name)
        if own is not None and isinstance(own.threshold, float | int):
            other = "auto" if seed.settings.strategy == "threshold" else "null"
            remedy = f"--set {seed.said_at}.threshold={other}"
            yield seed.said_at, "retrieve", own.threshold, remedy


def _of_the_entry(request: Request, threshold: str) -> Iterator[str]:
    """Numbers declared with the embedder, whose model is set to another one by this call."""
    used = request.embedders[threshold]
    name, settings = used.name, used.settings
    written = _in_file(request, name)
    entries = request.configuration.file["embedders"]
    if name not in entries or written is None or _same_network(written, settings):
        return
    value = getattr(settings.thresholds, threshold)
    if (
        getattr(request.settings, threshold).threshold is None
        and is_number(value)
        and not _overridden(request, f"embedders.{name}.thresholds.{threshold}")
    ):
        yield (
            f"embedders.{name}.thresholds.{threshold} {value} in "
            f"{request.configuration.path} is for {_network(written)}, not for "
            f"{_network(settings)}: say --set embedders.{name}.thresholds.{threshold}=auto, "
            "or a number that was measured for it"
        )


def _of_the_folder(request: Request) -> Iterator[str]:
    """The dedup threshold beside the weights of the model."""
    used = request.embedders["dedup"]
    if not is_wanted_of_folder(request.settings, used.settings):
        return
    stored = read_stored(used.settings)
    if stored is None:
        return
    if stored.problem:
        yield (
            f"{stored.path} {stored.problem}: it is not used, and the dedup threshold of embedder "
            f"{used.name} is measured in this run (lvd-curate calibrate --save keeps a new one)"
        )
    elif not stored.values.separates:
        share = stored.values.dedup_recall
        finds = f"{share:.0%} of" if share is not None else "few"
        yield (
            f"embedder {used.name} finds {finds} edited copies; --embedder descriptor may find more"
        )


def _declared_with_another(request: Request, kind: str, value: float) -> str | None:
    """Return the embedder that declares just this number, where the one that is used does not."""
    used = request.embedders[kind].settings
    if value in _declared(used, kind):
        return None
    for other, settings in request.configuration.whole.embedders.items():
        if not _same_network(settings, used) and value in _declared(settings, kind):
            return other
    return None


def _declared(settings: EmbedderSettings, name: str) -> list[float]:
    try:
        folder = declared_in_folder(settings)
    except LvdError:  # of an embedder that this run may have nothing to do with
        folder = None
    found = [getattr(settings.thresholds, name), folder and getattr(folder, name, None)]
    return [value for value in found if is_number(value)]


def _in_file(request: Request, name: str) -> EmbedderSettings | None:
    """Return the embedder of that name without the overrides of this call; None without one."""
    written = request.configuration.file["embedders"]
    try:
        if name in written:
            return EmbedderSettings.model_validate(written[name])
        return settings_for_folder(Path(name))
    except (ValidationError, LvdError):
        return None


def _same_network(one: EmbedderSettings | None, other: EmbedderSettings) -> bool:
    return one is not None and _network(one) == _network(other)


def _network(settings: EmbedderSettings) -> str:
    """Return what tells a network from another, for reading too."""
    if settings.kind == "descriptor":
        return settings.kind
    model = str(local_folder(settings).resolve()) if in_folder(settings) else settings.model
    size = input_size(settings)
    return " ".join(
        [
            model,
            *([f"at {size} px"] if size else []),
            *([] if settings.pretrained is True else [f"pretrained={settings.pretrained}"]),
            *([f"seed={settings.seed}"] if settings.pretrained is False else []),
        ]
    )


def _now(name: str, before: str) -> str:
    return name if name != before else f"what {name} is set to"


def _overridden(request: Request, key: str) -> bool:
    """Tell whether this call sets a value, or a section that it stands in."""
    names = [text.partition("=")[0].strip() for text in request.configuration.overrides]
    return any(f"{key}.".startswith(f"{name}.") for name in names)
