"""Embedders: what maps images to unit vectors, their settings, and how they are loaded.

Nothing here imports torch before `load`, so that settings are checked within a blink.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared import bundled
from shared.errors import LvdError
from shared.storage import digest_file

LOCAL = "local-dir:"
HUB = "hf-hub:"
BUILT_IN = "builtin:"
BUNDLED = f"{BUILT_IN}{bundled.NAME}"

REDUCED_DECODING_FACTOR = 2.0
"""Reduced decoding keeps the shorter side at this many times what the model's transform resizes to.

Measured on crawl-small, the model's input made so small (80 px) that most JPEGs are reduced: 5.0%
of the decisions change at 1.0, 2.5% at 1.5 and 1.4% at 2.0 (median cosine 0.998). At the usual
224 px a factor of 2 leaves JPEGs with a shorter side below 1,024 px as they are.
"""

Threshold = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | Literal["auto"]


class Thresholds(BaseModel):
    """The cosines that belong to an embedder; `auto` is found by calibration."""

    model_config = ConfigDict(extra="forbid")

    dedup: Threshold = "auto"
    """At or above it, two images are copies."""
    retrieve: Threshold = "auto"
    """At or above it, an image is relevant to the seed image."""


class EmbedderSettings(BaseModel):
    """One embedder, as declared in `pipelines.yaml`."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["timm", "open_clip", "descriptor"]
    model: str | None = None
    """A name of the library, `hf-hub:OWNER/NAME`, `local-dir:FOLDER` of safetensors weights, or
    `builtin:bundled`."""
    pretrained: bool | str = True
    """true: the hub's weights; false: random ones by `seed`; else a .safetensors file, or for
    open_clip a tag."""
    seed: int = 0
    image_size: int | None = Field(None, ge=16, le=4096)
    """Side of the model's input in pixels; by default the model's own."""
    batch_size: int = Field(32, ge=1)
    decode: Literal["reduced", "full"] = "reduced"
    """`reduced` decodes large JPEGs at a smaller scale, never below what the model looks at."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    thresholds: Thresholds = Thresholds()

    @model_validator(mode="after")
    def _fits_its_kind(self) -> EmbedderSettings:
        if self.kind == "descriptor":
            given = self.model_fields_set & {"model", "pretrained", "seed", "image_size"}
            if given:
                raise ValueError(f"the descriptor has no {sorted(given)[0]!r}: remove it")
            return self
        if not self.model or self.model in (LOCAL, HUB):
            raise ValueError(f"embedders of kind {self.kind} need 'model', the name of one")
        if self.model.startswith(BUILT_IN) and (self.kind, self.model) != ("timm", BUNDLED):
            raise ValueError(f"the only built-in model is {BUNDLED}, of kind timm")
        if isinstance(self.pretrained, str) and self.model.startswith((LOCAL, HUB, BUILT_IN)):
            raise ValueError(f"{self.model} brings its own weights: remove 'pretrained'")
        if self.kind == "open_clip" and self.pretrained is True:
            if not self.model.startswith((LOCAL, HUB)):
                raise ValueError("'pretrained' must name open_clip's tag, such as openai")
        elif self.kind == "timm" and isinstance(self.pretrained, str):
            _check_is_safetensors(self.pretrained)
        return self


class Embedder(Protocol):
    """A loaded embedder."""

    dim: int
    """Length of its vectors."""
    input_side: int
    """The shorter side, in pixels, to which its transform resizes an image before it crops."""
    reduce_to: int | None
    """What to give to `shared.images.decode`; None where images are to be decoded in full."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the model's input of an RGB image: uint8 [height, width, 3]. Thread-safe."""
        ...

    def embed(self, batch: Sequence[np.ndarray]) -> np.ndarray:
        """Return the L2-normalised vectors of prepared images, float32 [n, dim].

        A zero or non-finite vector stays as it is, for the caller to mark.
        """
        ...


def bundled_settings() -> EmbedderSettings:
    """Return the settings of the bundled embedder, as good as an entry in `pipelines.yaml`."""
    return EmbedderSettings(kind="timm", model=BUNDLED)


def settings_for_folder(path: Path) -> EmbedderSettings:
    """Return the settings of a model folder as timm, open_clip or this project's trainer write it.

    Raises LvdError unless the folder holds a config and safetensors weights.
    """
    folder = Path(path)
    for kind, config, weights in (
        ("timm", "config.json", "model.safetensors"),
        ("open_clip", "open_clip_config.json", "open_clip_model.safetensors"),
    ):
        if (folder / config).is_file() and (folder / weights).is_file():
            return resolve(EmbedderSettings(kind=kind, model=f"{LOCAL}{folder}"))
    if not folder.is_dir():
        raise LvdError(f"no model folder at {folder}: give one with config.json and its weights")
    raise LvdError(
        f"{folder} is no model folder: it needs config.json and model.safetensors (weights in "
        "other formats are never read: save them as safetensors)"
    )


def resolve(settings: EmbedderSettings) -> EmbedderSettings:
    """Return the settings with `auto` decided for this machine and local paths made absolute.

    On CUDA float16, whose error is an eighth of bfloat16's. On CPUs with bfloat16 instructions
    bfloat16: measured with AVX-512 BF16 on one thread, it embeds 1.6 to 1.8 times (ViT-S) and 2.1
    times (MobileNetV2) faster than float32, with AMX 3.5 times.
    """
    if settings.kind == "descriptor":
        return settings.model_copy(update={"device": "cpu", "precision": "float32"})
    device, precision = settings.device, settings.precision
    if device == "auto":
        device = "cuda" if _has_nvidia_gpu() else "cpu"
    if precision == "auto":
        gains = {"amx_bf16", "avx512_bf16"} & _cpu_flags()
        precision = "float16" if device == "cuda" else "bfloat16" if gains else "float32"
    update = {"device": device, "precision": precision}
    if settings.model.startswith(LOCAL):
        update["model"] = f"{LOCAL}{local_folder(settings).resolve()}"
    if is_weights_file(settings.pretrained):
        update["pretrained"] = str(Path(settings.pretrained).resolve())
    return settings.model_copy(update=update)


def identity(settings: EmbedderSettings) -> dict:
    """Return what decides the vectors, JSON-able and without paths: local files by their sha256."""
    settings = resolve(settings)
    if settings.kind == "descriptor":
        from shared.descriptor import VERSION

        return {"kind": "descriptor", "version": VERSION, "decode": settings.decode}
    known = settings.model_dump(exclude={"thresholds", "seed"})
    if settings.pretrained is False:
        known["seed"] = settings.seed
    if in_folder(settings):
        known["model"] = {f.name: _digest(f) for f in local_files(settings)}
    if is_weights_file(settings.pretrained):
        known["pretrained"] = _digest(Path(settings.pretrained))
    return known


def load(settings: EmbedderSettings, threads: int) -> Embedder:
    """Return the embedder, ready, on `threads` threads; one per process.

    Raises LvdError, with the remedy, when it cannot be had.
    """
    settings = resolve(settings)
    if settings.kind == "descriptor":
        from shared.descriptor import Descriptor

        return Descriptor(reduced=settings.decode == "reduced")
    if settings.kind == "timm":
        from shared.timm_embedder import load_timm

        return load_timm(settings, threads)
    from shared.open_clip_embedder import load_open_clip

    return load_open_clip(settings, threads)


@contextmanager
def failure_is_said(model: str) -> Iterator[None]:
    """Turn whatever a library raises while it builds a model into one line."""
    try:
        yield
    except LvdError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise LvdError(
            f"embedder model {model} cannot be loaded ({type(error).__name__}: {reason}): "
            "check that its weights, config and image_size belong together"
        ) from error


def in_folder(settings: EmbedderSettings) -> bool:
    """Tell models of a folder, the bundled one among them, from those that libraries know."""
    return settings.kind != "descriptor" and settings.model.startswith((LOCAL, BUILT_IN))


def local_folder(settings: EmbedderSettings) -> Path:
    """Return the folder of a `local-dir:` model, or of the bundled one."""
    if settings.model == BUNDLED:
        return bundled.FOLDER
    return Path(settings.model.removeprefix(LOCAL)).expanduser()


def local_files(settings: EmbedderSettings) -> tuple[Path, Path]:
    """Return config and weights of a model `in_folder`; LvdError when one is missing."""
    names = {
        "timm": ("config.json", "model.safetensors"),
        "open_clip": ("open_clip_config.json", "open_clip_model.safetensors"),
    }[settings.kind]
    config, weights = (local_folder(settings) / name for name in names)
    for file in (config, weights):
        if not file.is_file():
            raise LvdError(
                f"embedder model {settings.model}: there is no {file.name} in the folder; a "
                f"{settings.kind} model folder holds {names[0]} and {names[1]}"
            )
    return config, weights


def weights_digest(settings: EmbedderSettings) -> str:
    """Return the sha256, in hex, of the weights of a model `in_folder`."""
    return _digest(local_files(settings)[1])


def given_weights(settings: EmbedderSettings) -> Path | None:
    """Return the local safetensors weights that the settings name; None where the hub has them."""
    if in_folder(settings):
        return local_files(settings)[1]
    if not is_weights_file(settings.pretrained):
        return None
    file = Path(settings.pretrained)
    if not file.is_file():
        raise LvdError(
            f"embedder model {settings.model}: no weights at {file}; correct 'pretrained'"
        )
    return file


def is_weights_file(pretrained: bool | str) -> bool:
    """Tell a path of weights from a tag and from a switch."""
    return isinstance(pretrained, str) and pretrained.endswith(".safetensors")


def _check_is_safetensors(path: str) -> None:
    if not path.endswith(".safetensors"):
        raise ValueError(
            f"'pretrained' must be true, false or a .safetensors file (pickled weights are never "
            f"read), not {path!r}"
        )


def _digest(file: Path) -> str:
    if not file.is_file():
        raise LvdError(f"no weights at {file}: correct 'pretrained' of the embedder")
    stamp = file.stat()
    return _digest_of(file, stamp.st_size, stamp.st_mtime_ns)


@lru_cache(maxsize=16)
def _digest_of(file: Path, size: int, mtime: int) -> str:
    """Read a file of weights, which may be large, once for all the addresses that it is part of."""
    return digest_file(file)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _has_nvidia_gpu() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    gpus = Path("/proc/driver/nvidia/gpus")
    return gpus.is_dir() and any(gpus.iterdir())
