"""Extracts the features of labelled images once for each model and dataset, and keeps them on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float16
from torch import Tensor
from torch.nn.functional import normalize

from shared.embedders.evaluation_transform import EvaluationTransform, square
from shared.errors import LvdError
from shared.progress import stage_bar, warn
from shared.storage.commits import committed, run_unit
from shared.storage.files import fingerprint
from train.data.labelled import LabelledImages
from train.evaluation.cache import GrowingArray, scratch_folder
from train.frozen.model import FrozenModel, JoinedModel

VERSION = 1
BLOCKS = 4
"""The last so many blocks' CLS tokens are kept: DINOv2's linear probe takes 1 or 4."""
ROWS = "rows.parquet"
FIELDS = ("pooled", "cls", "mean")
LARGEST = float(torch.finfo(torch.float16).max)
_CHUNK = 8192

Features = Tensor | Callable[[], Tensor | None] | None


class Bank:
    """A dataset seen through one model: a row for each image that could be decoded.

    Features are float16 and mapped from the disk, where a file holds them: what is not read takes
    no memory. Take them to float32 block by block. Each may be given as a function that is called
    when it is first wanted.
    """

    def __init__(
        self,
        labels: list[str],
        keys: list[str],
        pooled: Features,
        cls: Features = None,
        mean: Features = None,
    ) -> None:
        self.labels, self.keys = labels, keys
        self._given = {"pooled": pooled, "cls": cls, "mean": mean}

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def pooled(self) -> Float16[Tensor, "n e"]:
        """By the model's own pooling."""
        pooled = self._read("pooled")
        assert pooled is not None  # any model pools
        return pooled

    @cached_property
    def cls(self) -> Float16[Tensor, "n blocks d"] | None:
        """CLS tokens of the last 4 blocks, or of as many as there are; None without CLS token."""
        return self._read("cls")

    @cached_property
    def mean(self) -> Float16[Tensor, "n d"] | None:
        """The mean patch token of the last block; None where there is no map of patches."""
        return self._read("mean")

    def _read(self, field: str) -> Tensor | None:
        given = self._given[field]
        return given() if callable(given) else given


def bank(
    model: JoinedModel,
    path: str,
    *,
    role: str,
    cache: Path,
    batch_size: int,
    workers: int,
    labelled: bool = True,
    resize: int | None = None,
) -> Bank:
    """Return the features of the images at `path`, from `cache` where they are there already.

    `role` is for messages, as "--train". Else the images are streamed through each part of the
    model, decoded by `workers` threads meanwhile. Features of several parts are L2-normalised and
    stand side by side; what one of them has not is None. Images without label are left out, unless
    they need none (`labelled` false). `resize` is the shorter side to which images are resized
    before the middle is cut out, in place of the model's own. Raises LvdError where no image is
    left, and where a model gives what is not finite.
    """
    entries = [
        _extracted(part, path, role, cache, batch_size, workers, labelled, resize)
        for part in model.parts
    ]
    tables = [pq.read_table(entry / ROWS) for entry in entries]
    keys = [table["key"].to_pylist() for table in tables]
    labels = tables[0]["label"].to_pylist()
    if len(entries) == 1:
        return Bank(labels, keys[0], *(partial(_mapped, entries[0], field) for field in FIELDS))
    # What decodes at one model's scale could fail at another's.
    common = set(keys[0]).intersection(*keys[1:])
    rows = [np.array([n for n, key in enumerate(some) if key in common]) for some in keys]
    fields = (partial(_joined, entries, rows, field, cache) for field in FIELDS)
    return Bank([labels[n] for n in rows[0]], [keys[0][n] for n in rows[0]], *fields)


def _extracted(
    model: FrozenModel,
    path: str,
    role: str,
    cache: Path,
    batch_size: int,
    workers: int,
    labelled: bool,
    resize: int | None,
) -> Path:
    """Return the folder with the features of a dataset, made now where it is not there."""
    transform = model.transform if resize is None else _resizing(model, resize)
    with scratch_folder(cache) as scratch:
        images = LabelledImages(
            role,
            path,
            transform=transform,
            batch_size=batch_size,
            scratch=scratch,
            labelled=labelled,
            keep=False,
            threads=workers,
        )
        about = {"version": VERSION, "data": images.fingerprint, "labelled": labelled}
        if resize is not None:
            about["transform"] = repr(transform)
        out = cache / model.fingerprint / fingerprint(about)
        if done := committed(out):
            for message in done["left_out"]:
                warn(f"{role}: {message}")
        else:
            run_unit(_extract, (model, images), out, scratch)
    return out


def _resizing(model: FrozenModel, resize: int) -> EvaluationTransform:
    """Return the model's transform with another shorter side before its crop."""
    own, size = model.transform, model.needs.size
    if resize < size:
        raise LvdError(
            f"resize={resize} is less than the {size} px that --model {model.name} sees: give more, "
            "or a smaller --size"
        )
    decode: Literal["reduced", "full"] = "full" if own.reduce_to is None else "reduced"
    return square(size, mean=own.mean, std=own.std, decode=decode, resize=resize)


def _extract(model: FrozenModel, images: LabelledImages, *, out: Path) -> dict[str, Any]:
    """Write the features of all images into the folder `out`, one batch at a time."""
    keys: list[str] = []
    places: list[int] = []
    files: dict[str, GrowingArray] = {}
    with ExitStack() as stack, stage_bar("features", None) as bar:
        bar.note(f"{images.name} through {model.name}")
        for batch in images.batches():
            if not batch.keys:
                continue
            for field, values in _fields(model, batch.images).items():
                if field not in files:
                    files[field] = stack.enter_context(GrowingArray(out / f"{field}.npy"))
                files[field].append(values)
            keys += batch.keys
            places += batch.places.tolist()
            bar.advance(len(batch.keys))
    if not keys:
        raise LvdError(
            f"{images.name}: none of the images at {images.path!r} can be decoded: check that they "
            "are whole"
        )
    labels = [images.labels[place] for place in places]
    columns = {"key": pa.array(keys, pa.string()), "label": pa.array(labels, pa.string())}
    pq.write_table(pa.table(columns), out / ROWS, compression="zstd")
    return {"images": len(keys), "left_out": images.left_out, "model": model.name}


def _fields(model: FrozenModel, pixels: Tensor) -> dict[str, Float16[np.ndarray, "n ..."]]:
    tokens = model.tokens(pixels, BLOCKS)
    mean = None if tokens.patches is None else tokens.patches.mean(dim=(1, 2))
    found = zip(FIELDS, (tokens.pooled, tokens.cls, mean), strict=True)
    return {
        field: values.clamp(-LARGEST, LARGEST).half().cpu().numpy()
        for field, values in found
        if values is not None
    }


def _mapped(entry: Path, field: str) -> Float16[Tensor, "n ..."] | None:
    """Return what a file holds, read as it is used; None where there is no such file."""
    file = entry / f"{field}.npy"
    # Copy on write: torch wants an array that may be written to, and nothing writes to it.
    return torch.from_numpy(np.load(file, mmap_mode="c")) if file.exists() else None


def _joined(
    entries: Sequence[Path], rows: Sequence[np.ndarray], field: str, cache: Path
) -> Float16[Tensor, "n ..."] | None:
    """Return a field of several models side by side, from a file that is made on its first use."""
    parts = [_mapped(entry, field) for entry in entries]
    if any(part is None for part in parts):
        return None
    names = [f"{entry.parent.name}/{entry.name}" for entry in entries]
    out = cache / "joined" / fingerprint([VERSION, field, names])
    with scratch_folder(cache) as scratch:
        run_unit(_join, (parts, rows, field), out, scratch)
    return _mapped(out, field)


def _join(
    parts: Sequence[Tensor], rows: Sequence[np.ndarray], field: str, *, out: Path
) -> dict[str, Any]:
    with GrowingArray(out / f"{field}.npy") as file:
        for start in range(0, len(rows[0]), _CHUNK):
            some = [
                part[own[start : start + _CHUNK]] for part, own in zip(parts, rows, strict=True)
            ]
            if field == "cls":  # of which one model may have fewer blocks
                blocks = min(values.shape[1] for values in some)
                some = [values[:, -blocks:] for values in some]
            unit = [normalize(values.float(), dim=-1) for values in some]
            file.append(torch.cat(unit, dim=-1).half().numpy())
    return {"images": len(rows[0])}
