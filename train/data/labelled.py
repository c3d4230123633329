"""Reads labelled images to score features with; training itself never sees a label."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from shared.datasets import DatasetSettings, Part, list_parts
from shared.errors import LvdError
from shared.filetypes import extension
from shared.images import ImageError, decode
from shared.keys import stem
from shared.listing import is_remote, locate, open_binary
from shared.parts import Member, PartReader, direct
from shared.progress import warn
from shared.tars import walk_tar

KEPT_BYTES = 1 << 30
"""Decoded pixels of one dataset that a process keeps, so that the next evaluation reads nothing."""

_LABEL_COLUMNS = ("cls", "label")
_LARGEST_LABEL = 4096


@dataclass(frozen=True)
class LabelledBatch:
    """Decoded images and the places of the whole dataset at which they stand; it may be empty."""

    images: UInt8[Tensor, "n 3 size size"]
    places: Int[Tensor, " n"]


class _Encoded(NamedTuple):
    place: int
    key: str
    data: bytes


class LabelledImages:
    """One process's share of a labelled dataset: its n-th image is process n % world's.

    An image's label is what its `.cls` member says (as webdataset has it), else the field `cls` or
    `label` of its `.json` member or of a Parquet file, else the first folder of its path. An image
    without one, or one that cannot be decoded, is left out and counted in a warning. Images are
    resized (bicubic) to a shorter side of `size` pixels and cut to the square at their centre.
    """

    def __init__(
        self,
        name: str,
        path: str,
        *,
        size: int,
        batch_size: int,
        scratch: Path,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.name, self.path = name, path
        self.labels: list[str] = []
        """The labels of all images of all processes, by place; there after a pass over `batches`."""
        self._size, self._batch_size = size, batch_size
        self._scratch, self._rank, self._world = scratch, rank, world
        self._parts = list_parts(name, DatasetSettings(path=path))
        self._kept: list[LabelledBatch] | None = None
        self._unlabelled: list[str] = []
        self._broken: list[str] = []

    def batches(self) -> Iterator[LabelledBatch]:
        """Yield this process's images; every process yields the same number of batches.

        Raises LvdError where no image has a label.
        """
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[LabelledBatch] = []
        room = KEPT_BYTES
        for batch in self._read():
            room -= batch.images.nbytes
            if room >= 0:
                kept.append(batch)
            else:
                kept.clear()
            yield batch
        self._report()
        self._kept = kept if room >= 0 else None

    def _read(self) -> Iterator[LabelledBatch]:
        self.labels, self._unlabelled, self._broken = [], [], []
        share: list[_Encoded] = []
        yielded = 0
        with ThreadPoolExecutor() as pool:
            for part in self._parts:
                with PartReader(part, self._scratch, _LABEL_COLUMNS) as reader:
                    for member, label in self._labelled(part, reader):
                        place = len(self.labels)
                        self.labels.append(label)
                        if place % self._world != self._rank:
                            continue
                        share.append(_Encoded(place, member.key, _bytes(reader, member)))
                        if len(share) == self._batch_size:
                            yield self._decoded(share, pool)
                            yielded += 1
                            share = []
            # Another process may have one image more than this one, and so one batch more, in
            # which the processes of a sharded model must meet.
            largest_share = -(-len(self.labels) // self._world)
            if yielded < -(-largest_share // self._batch_size):
                yield self._decoded(share, pool)

    def _labelled(self, part: Part, reader: PartReader) -> Iterator[tuple[Member, str]]:
        beside = _cls_members(part, self._scratch) if part.format == "tar" else {}
        for member in reader.members:
            label = beside.get(stem(member.member)) or _label(part, member)
            if label:
                yield member, label
            else:
                self._unlabelled.append(member.key)

    def _decoded(self, share: list[_Encoded], pool: ThreadPoolExecutor) -> LabelledBatch:
        pictures = list(pool.map(lambda encoded: _square(encoded.data, self._size), share))
        whole = [n for n, picture in enumerate(pictures) if picture is not None]
        self._broken += [share[n].key for n, picture in enumerate(pictures) if picture is None]
        images = torch.empty(len(whole), 3, self._size, self._size, dtype=torch.uint8)
        for row, n in enumerate(whole):
            images[row] = torch.from_numpy(pictures[n]).permute(2, 0, 1)
        return LabelledBatch(images, torch.tensor([share[n].place for n in whole]).long())

    def _report(self) -> None:
        if not self.labels:
            raise LvdError(
                f"{self.name}: none of the images at {self.path!r} has a label: put a .cls member, "
                "or a `cls` or `label` in the .json, beside each, or give ROOT/CLASS/IMAGE folders"
            )
        if self._unlabelled and self._rank == 0:
            self._warn(self._unlabelled, "have no label")
        if self._broken:
            self._warn(self._broken, "cannot be decoded")

    def _warn(self, keys: list[str], what: str) -> None:
        warn(f"{self.name}: {len(keys)} images {what} and are left out (the first is {keys[0]})")


def class_numbers(*datasets: list[str]) -> tuple[int, list[Int[Tensor, " n"]]]:
    """Return the number of classes of some datasets' labels together, and each one's labels as int64.

    Classes are numbered in the order of their labels: by value where all are whole numbers, else by
    text.
    """
    names = {label for labels in datasets for label in labels}
    by_value = all(name.removeprefix("-").isdecimal() for name in names)
    numbers = {name: n for n, name in enumerate(sorted(names, key=int if by_value else str))}
    return len(numbers), [torch.tensor([numbers[label] for label in some]) for some in datasets]


def _bytes(reader: PartReader, member: Member) -> bytes:
    try:
        return reader.read(member)
    except ImageError:
        return b""  # which does not decode either


def _square(data: bytes, size: int) -> np.ndarray | None:
    """Return the centre of an image as uint8 [size, size, 3]; None where it cannot be decoded."""
    try:
        # Twice the size keeps reduced decoding of large JPEGs from showing in the result.
        image = decode(data, reduce_to=2 * size)
    except ImageError:
        return None
    if image.size != (size, size):
        image = transforms.resize(image, [size], InterpolationMode.BICUBIC)
        image = transforms.center_crop(image, [size, size])
    return np.array(image)


def _label(part: Part, member: Member) -> str | None:
    for name in _LABEL_COLUMNS:
        value = member.columns[name]
        if value is not None:
            return str(int(value) if isinstance(value, bool | float) else value).strip()
    folder, slash, _ = member.member.partition("/")
    return folder if part.format == "folder" and slash else None


def _cls_members(part: Part, scratch: Path) -> dict[str, str | None]:
    """Return the text of the `.cls` members by their stems; of two that differ, none."""
    labels: dict[str, str | None] = {}
    with _plain_tar(part, scratch) as tar:
        for entry in walk_tar(tar.fileno(), []):
            if extension(entry.name) == "cls" and not entry.problem:
                data = os.pread(tar.fileno(), min(entry.size, _LARGEST_LABEL), entry.offset)
                text = data.decode("utf-8", "replace").strip()
                trunk = stem(entry.name)
                labels[trunk] = text if labels.get(trunk, text) == text else None
    return labels


@contextmanager
def _plain_tar(part: Part, scratch: Path) -> Iterator[IO[bytes]]:
    """Open a tar as a local, uncompressed file: a remote or compressed one is copied first."""
    location = locate(part.root, part.paths[0])
    plain = direct(part)
    with open_binary(location) as source:
        if plain and not is_remote(location):
            yield source
            return
        with tempfile.TemporaryFile(dir=scratch) as copy:
            try:
                stream = source if plain else gzip.GzipFile(fileobj=source)
                shutil.copyfileobj(stream, copy)
            except (EOFError, zlib.error, gzip.BadGzipFile):
                pass  # PartReader too reads what stands before the damage, and leaves the rest
            copy.flush()
            yield copy
