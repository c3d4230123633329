"""The dedup threshold that was measured for a model and is kept in its folder, as `thresholds.json`.

A relevance threshold belongs to a seed as much as to a model, and is never kept.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.embedders.embedder import local_files, local_folder, weights_digest
from shared.embedders.settings import EmbedderSettings, in_folder
from shared.errors import LvdError
from shared.storage.files import read_json, write_json

FILE = "thresholds.json"


class StoredThresholds(BaseModel):
    """What stands in the file; keys that nobody knows here may be added."""

    model_config = ConfigDict(extra="ignore")

    dedup: float | None = Field(None, ge=-1, le=1, allow_inf_nan=False)
    weights: str | None = None
    """The sha256 of the weights that they were measured with."""
    image_size: int | None = None
    """The side of the model's input in pixels."""
    precision: str | None = None
    crawl: str | None = None
    images: int | None = None
    """How many different images the crawl had."""
    separates: bool = True
    """False where no threshold kept the precision and found edited copies."""
    dedup_recall: float | None = None
    """The share of edited copies that reached `dedup`."""


@dataclass(frozen=True)
class Stored:
    """The thresholds beside a model, and why they are not those of its vectors ("" if they are)."""

    path: Path
    values: StoredThresholds
    problem: str


def read_stored(embedder: EmbedderSettings) -> Stored | None:
    """Return what is kept beside the embedder's weights; None where nothing is.

    Raises LvdError where it cannot be read.
    """
    values = declared_in_folder(embedder)
    if values is None:
        return None
    size = input_size(embedder)
    if embedder.pretrained is not True:
        problem = "was measured with its weights, which pretrained=false leaves out"
    elif values.weights != weights_digest(embedder):
        problem = "was measured with other weights than those beside it"
    elif values.image_size != size:
        problem = f"was measured at {values.image_size} px, not at {size} px"
    else:
        problem = ""
    return Stored(_path(embedder), values, problem)


def declared_in_folder(embedder: EmbedderSettings) -> StoredThresholds | None:
    """Return what the model's folder says, whether it is true of its weights or not."""
    if not in_folder(embedder) or not _path(embedder).is_file():
        return None
    path = _path(embedder)
    try:
        return StoredThresholds.model_validate(read_json(path))
    except (OSError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:150]
        raise LvdError(
            f"{path} does not hold thresholds ({reason}): delete it, or let lvd-curate calibrate "
            "--save write it again"
        ) from None


def writable_path(name: str, embedder: EmbedderSettings) -> Path:
    """Return where the thresholds of an embedder called `name` are to be kept.

    Raises LvdError where it is no model folder, or one that cannot be written to.
    """
    if not in_folder(embedder) or embedder.pretrained is not True:
        raise LvdError(
            f"--save writes {FILE} beside a model's weights, and embedder {name} is no folder of "
            f"them: declare what is measured in pipelines.yaml, as embedders.{name}.thresholds"
        )
    local_files(embedder)
    path = _path(embedder)
    if not os.access(path.parent, os.W_OK):
        raise LvdError(
            f"--save: cannot write to {path.parent}: name a copy of it, as --embedder FOLDER"
        )
    return path


def store(path: Path, embedder: EmbedderSettings, measured: dict[str, Any], crawl: str) -> None:
    """Write a calibration of `dedup`, with what it was measured on."""
    values = StoredThresholds(
        dedup=measured["threshold"],
        weights=weights_digest(embedder),
        image_size=input_size(embedder),
        precision=embedder.precision,
        crawl=crawl,
        images=measured["size"],
        separates=measured["separates"],
        dedup_recall=round(measured["recall"], 4),
    )
    try:
        write_json(path, values.model_dump())
    except OSError as error:
        raise LvdError(f"{path} cannot be written: {error.strerror or error}") from error


def input_size(embedder: EmbedderSettings) -> int | None:
    """Return the side of the input, in pixels, as set or as a model folder says; else None."""
    if embedder.image_size is not None or not in_folder(embedder):
        return embedder.image_size
    try:
        config: Any = read_json(local_files(embedder)[0])
        if embedder.kind == "open_clip":
            size = config["model_cfg"]["vision_cfg"]["image_size"]
        else:
            size = config.get("pretrained_cfg", config)["input_size"]
        return int(size if isinstance(size, int) else size[-1])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _path(embedder: EmbedderSettings) -> Path:
    return local_folder(embedder) / FILE
