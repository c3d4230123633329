"""The bytes of crawled images, fetched from wherever they lie."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from curate.catalogue.collection import Collection
from shared.errors import LvdError
from shared.parts import Member, Part, PartReader, direct, fetch
from shared.storage import read_json, write_json
from shared.stores import publish

FACTS = ("member", "offset", "bytes", "sha256")


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


class Originals:
    """Reads images of a collection; parts without offsets are spooled below `scratch` once."""

    def __init__(self, collection: Collection, parts: list[Part], scratch: Path) -> None:
        self._collection = collection
        self._parts = parts
        self._scratch = scratch
        self._readers: dict[int, tuple[PartReader, dict[str, Member]]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Originals:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, number: int) -> bytes:
        """Return the bytes of an image that could be read when it was embedded.

        Raises LvdError where they are other ones by now, and the storage's own error where it fails.
        """
        index = int(self._collection.part_of(np.array([number]))[0])
        row = number - int(self._collection.starts[index])
        part = self._parts[index]
        [fact] = self._collection.facts_of_part(index, FACTS, np.array([row])).to_pylist()
        if direct(part):
            data = fetch(part, fact["member"], fact["offset"], fact["bytes"])
        else:
            reader, members = self._reader(index)
            member = members.get(fact["key"])
            if member is None or member.problem:
                raise changed(part.name)
            data = reader.read(member)
        if hashlib.sha256(data).hexdigest() != fact["sha256"]:
            raise changed(part.name)
        return data

    def _reader(self, index: int) -> tuple[PartReader, dict[str, Member]]:
        if index not in self._readers:
            spool = self._stack.enter_context(tempfile.TemporaryDirectory(dir=self._scratch))
            reader = self._stack.enter_context(PartReader(self._parts[index], Path(spool), ()))
            self._readers[index] = reader, {member.key: member for member in reader.members}
        return self._readers[index]


def changed(part: str) -> LvdError:
    """Return the error of a part whose images are no longer those that were embedded."""
    return LvdError(f"part {part} changed while the run was going on: run the same command again")
