"""Reads labelled images to score features with; training itself never sees a label."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from shared.datasets.dataset import DatasetSettings, Part, list_parts
from shared.datasets.filetypes import extension
from shared.datasets.parts import Member, PartReader
from shared.datasets.single_images import direct
from shared.datasets.tars import list_tar
from shared.embedders.evaluation_transform import EvaluationTransform
from shared.errors import LvdError
from shared.keys import stem
from shared.pictures.images import ImageError, decode
from shared.progress import warn
from shared.storage.files import fingerprint
from shared.storage.remote import is_remote, locate, open_binary

KEPT_BYTES = 1 << 30
"""Decoded pixels of one dataset that a process keeps, so that the next evaluation reads nothing."""

_LABEL_COLUMNS = ("cls", "label")
_LARGEST_LABEL = 4096


@dataclass(frozen=True)
class LabelledBatch:
    """Decoded images and the places of the whole dataset at which they stand; it may be empty."""

    images: UInt8[Tensor, "n 3 height width"]
    """In channels-last memory."""
    places: Int[Tensor, " n"]
    keys: tuple[str, ...]


class _Coming(NamedTuple):
    place: int
    key: str
    picture: Future[np.ndarray | None]


class LabelledImages:
    """One process's share of a labelled dataset: its n-th image is process n % world's.

    An image's label is what its `.cls` member says (as webdataset has it), else the field `cls` or
    `label` of its `.json` member or of a Parquet file, else the first folder of its path. An image
    without one, or one that cannot be decoded, is left out and counted in a warning. With
    `labelled` false an image may be without, and its label is then "". Who reads more than once may
    `keep` what has been decoded, as far as it is small.
    """

    def __init__(
        self,
        name: str,
        path: str,
        *,
        transform: EvaluationTransform,
        batch_size: int,
        scratch: Path,
        labelled: bool = True,
        keep: bool = True,
        rank: int = 0,
        world: int = 1,
        threads: int | None = None,
    ) -> None:
        self.name, self.path = name, path
        self.labels: list[str] = []
        """The labels of all images of all processes, by place; there after a pass over `batches`."""
        self.left_out: list[str] = []
        """What the last pass warned of, without the dataset's name."""
        self._transform, self._batch_size, self._threads = transform, batch_size, threads
        self._scratch, self._wants_labels, self._keeps = scratch, labelled, keep
        self._rank, self._world = rank, world
        self._parts = list_parts(name, DatasetSettings(path=path))
        self._kept: list[LabelledBatch] | None = None
        self._unlabelled: list[str] = []
        self._broken: list[str] = []

    @property
    def fingerprint(self) -> str:
        """What changes when the data do, as far as names, sizes and modification times tell."""
        return fingerprint([part.fingerprint for part in self._parts])

    def batches(self) -> Iterator[LabelledBatch]:
        """Yield this process's images; every process yields the same number of batches.

        While one batch is at work the next is decoded. Raises LvdError where no image has a label.
        """
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[LabelledBatch] = []
        room = KEPT_BYTES if self._keeps else -1
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
        coming: list[_Coming] = []
        size, yielded = self._batch_size, 0
        with ThreadPoolExecutor(self._threads) as pool:
            for part in self._parts:
                with PartReader(part, self._scratch, _LABEL_COLUMNS) as reader:
                    for member, label in self._labelled(part, reader):
                        place = len(self.labels)
                        self.labels.append(label)
                        if place % self._world != self._rank:
                            continue
                        picture = pool.submit(self._picture, reader, member)
                        coming.append(_Coming(place, member.key, picture))
                        if len(coming) == 2 * size:
                            yield self._batch(coming[:size])
                            del coming[:size]
                            yielded += 1
                    wait(some.picture for some in coming)  # they read what is closed next
            # Another process may have one image more than this one, and so one batch more, in
            # which the processes of a sharded model must meet.
            largest_share = -(-len(self.labels) // self._world)
            for start in range(0, largest_share - yielded * size, size):
                yield self._batch(coming[start : start + size])

    def _labelled(self, part: Part, reader: PartReader) -> Iterator[tuple[Member, str]]:
        beside = _cls_members(part, self._scratch) if part.format == "tar" else {}
        for member in reader.members:
            label = beside.get(stem(member.member)) or _label(part, member)
            if label or not self._wants_labels:
                yield member, label or ""
            else:
                self._unlabelled.append(member.key)

    def _picture(self, reader: PartReader, member: Member) -> UInt8[np.ndarray, "h w 3"] | None:
        """Return what the model is to see of an image; None where it cannot be decoded."""
        try:
            image = decode(reader.read(member), reduce_to=self._transform.reduce_to)
        except ImageError:
            return None
        return self._transform.prepare(image)

    def _batch(self, coming: list[_Coming]) -> LabelledBatch:
        looks = [(some, some.picture.result()) for some in coming]
        whole = [(some, pixels) for some, pixels in looks if pixels is not None]
        self._broken += [some.key for some, pixels in looks if pixels is None]
        images = np.empty((len(whole), *self._transform.size, 3), np.uint8)
        for row, (_, pixels) in enumerate(whole):
            images[row] = pixels
        return LabelledBatch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            torch.tensor([some.place for some, _ in whole]).long(),
            tuple(some.key for some, _ in whole),
        )

    def _report(self) -> None:
        if not self.labels:
            raise LvdError(
                f"{self.name}: none of the images at {self.path!r} has a label: put a .cls member, "
                "or a `cls` or `label` in the .json, beside each, or give ROOT/CLASS/IMAGE folders"
                if self._wants_labels
                else f"{self.name}: there are no images at {self.path!r}: name another place"
            )
        self.left_out = [
            f"{len(keys)} images {what} and are left out (the first is {keys[0]})"
            for keys, what in (
                (self._unlabelled if self._rank == 0 else [], "have no label"),
                (self._broken, "cannot be decoded"),
            )
            if keys
        ]
        for message in self.left_out:
            warn(f"{self.name}: {message}")


def class_numbers(*datasets: list[str]) -> tuple[int, list[Int[Tensor, " n"]]]:
    """Return the number of classes of some datasets' labels together, and each one's labels as int64.

    Classes are numbered in the order of their labels: by value where all are whole numbers, else by
    text.
    """
    names = {label for labels in datasets for label in labels}
    by_value = all(name.removeprefix("-").isdecimal() for name in names)
    numbers = {name: n for n, name in enumerate(sorted(names, key=int if by_value else str))}
    return len(numbers), [torch.tensor([numbers[label] for label in some]) for some in datasets]


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
        for entry in list_tar(tar.fileno(), []):
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
