"""Puts a checkpoint that is sharded over files into one safetensors file, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from shared.config import flat
from shared.storage.files import dumps, read_json, write_json
from train.model.model_folder import CONFIG
from train.persistence.checkpoints import FILE_BYTES, read_tensors
from train.persistence.marks import MANIFEST, ONE_FILE
from train.weights.trained import Trained

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the safetensors format calls the types."""


def write_one_file(trained: Trained, folder: Path, prefixes: tuple[str, ...]) -> tuple[int, int]:
    """Write the tensors whose names begin so, and the settings; return their count and bytes.

    `folder` gets `checkpoint.safetensors`, whose tensors are named as in the checkpoint
    (`teacher/backbone.vit.norm.weight`, `optimiser/dino_head.prototypes/exp_avg`), and
    `config.json` with step, recipe and the run's counts; the same text is in the file's metadata.
    Tensors are read and written in portions of `FILE_BYTES` (256 MiB), or one if it is larger; with
    the mapped files that they come from, memory stays below about twice that.
    """
    manifest = read_json(trained.checkpoint / MANIFEST)
    config = {
        "step": trained.step,
        "recipe": trained.recipe.model_dump(mode="json"),
        "values": flat(manifest["values"]),
    }
    wanted = {
        name: torch.empty(known["shape"], dtype=getattr(torch, known["dtype"]), device="meta")
        for name, known in manifest["tensors"].items()
        if name.startswith(prefixes)
    }
    # The widest types first, as the library does it: so each is aligned to its own width.
    names = sorted(wanted, key=lambda name: (-wanted[name].itemsize, name))
    wanted = {name: wanted[name] for name in names}
    with (folder / ONE_FILE).open("wb") as stream:
        stream.write(_header(wanted, {"format": "pt", CONFIG: dumps(config)}))
        for part in _portions(wanted):
            tensors = {name: torch.empty_like(wanted[name], device="cpu") for name in part}
            read_tensors(trained.checkpoint, tensors, together=False)
            for tensor in tensors.values():
                stream.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    write_json(folder / CONFIG, config)
    return len(wanted), sum(tensor.nbytes for tensor in wanted.values())


def _header(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Return what stands before the data in a safetensors file: a length, and JSON of that many."""
    entries: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _portions(tensors: Mapping[str, torch.Tensor]) -> Iterator[list[str]]:
    """Return the names, in order, so many at a time as fit into `FILE_BYTES`."""
    part: list[str] = []
    held = 0
    for name, tensor in tensors.items():
        if part and held + tensor.nbytes > FILE_BYTES:
            yield part
            part, held = [], 0
        part.append(name)
        held += tensor.nbytes
    if part:
        yield part
