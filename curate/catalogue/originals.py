"""The bytes of crawled images, fetched from wherever they lie."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from curate.catalogue.collection import Collection
from curate.catalogue.part_files import ROW_GROUP
from shared.datasets.dataset import Part
from shared.datasets.parts import Member, PartReader
from shared.datasets.single_images import direct, fetch
from shared.errors import LvdError
from shared.storage.files import read_json, write_json
from shared.storage.stores import publish

FACTS = ("member", "offset", "bytes", "sha256")
_KEPT = 128
"""Of so many row groups the facts are kept, some 150 bytes an image."""


def save_parts(parts: list[Part], path: Path) -> Path:
    """Write parts where workers find them with `load_parts`."""
    write_json(path, [asdict(part) for part in parts])
    publish(path)
    return path


@lru_cache(maxsize=32)
def load_parts(path: Path) -> list[Part]:
    """Return what `save_parts` wrote."""
    parts = [Part(**entry) for entry in read_json(path)]
    return [replace(part, paths=tuple(part.paths), sizes=tuple(part.sizes)) for part in parts]


class PartBytes:
    """Reads images of parts; parts without offsets are spooled below `scratch` once."""

    def __init__(self, parts: list[Part], scratch: Path) -> None:
        self._parts = parts
        self._scratch = scratch
        self._readers: dict[int, tuple[PartReader, dict[str, Member]]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> PartBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, index: int, key: str, member: str, offset: int | None, size: int) -> bytes:
        """Return the bytes of an image of the part at `index`.

        Raises LvdError where it is not there any more, and the storage's own error where it fails.
        """
        part = self._parts[index]
        if direct(part):
            return fetch(part, member, offset, size)
        reader, members = self._reader(index)
        found = members.get(key)
        if found is None or found.problem:
            raise changed(part.name)
        return reader.read(found)

    def _reader(self, index: int) -> tuple[PartReader, dict[str, Member]]:
        if index not in self._readers:
            spool = self._stack.enter_context(tempfile.TemporaryDirectory(dir=self._scratch))
            reader = self._stack.enter_context(PartReader(self._parts[index], Path(spool), ()))
            self._readers[index] = reader, {member.key: member for member in reader.members}
        return self._readers[index]


class Originals:
    """Reads images of a collection, and makes sure that they are those that were embedded."""

    def __init__(self, collection: Collection, parts: list[Part], scratch: Path) -> None:
        self._collection = collection
        self._parts = parts
        self._bytes = PartBytes(parts, scratch)
        self._blocks: dict[tuple[int, int], pa.Table] = {}

    def __enter__(self) -> Originals:
        return self

    def __exit__(self, *error: object) -> None:
        self._blocks.clear()
        self._bytes.__exit__(*error)

    def read(self, number: int) -> bytes:
        """Return the bytes of an image that could be read when it was embedded.

        Raises LvdError where they are other ones by now, and the storage's own error where it fails.
        """
        index = int(self._collection.part_of(np.array([number]))[0])
        row = number - int(self._collection.starts[index])
        [fact] = self._block(index, row // ROW_GROUP).slice(row % ROW_GROUP, 1).to_pylist()
        data = self._bytes.read(index, fact["key"], fact["member"], fact["offset"], fact["bytes"])
        if hashlib.sha256(data).hexdigest() != fact["sha256"]:
            raise changed(self._parts[index].name)
        return data

    def _block(self, index: int, block: int) -> pa.Table:
        """Return the facts of the rows of a part of a row group."""
        if (index, block) not in self._blocks:
            if len(self._blocks) == _KEPT:
                del self._blocks[next(iter(self._blocks))]
            size = int(self._collection.starts[index + 1] - self._collection.starts[index])
            rows = np.arange(block * ROW_GROUP, min(size, (block + 1) * ROW_GROUP))
            self._blocks[index, block] = self._collection.facts_of_part(index, FACTS, rows)
        return self._blocks[index, block]


def changed(part: str) -> LvdError:
    """Return the error of a part whose images are no longer those that were embedded."""
    return LvdError(f"part {part} changed while the run was going on: run the same command again")
