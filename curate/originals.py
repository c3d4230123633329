"""The bytes of crawled images, fetched from wherever they lie."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from shared.errors import LvdError
from shared.images import ImageError
from shared.parts import Part, PartReader, direct, fetch
from shared.storage import read_json, write_json


def save_parts(parts: list[Part], path: Path) -> Path:
    """Write parts where workers find them with `load_parts`."""
    write_json(path, [asdict(part) for part in parts])
    return path


@lru_cache(maxsize=2)
def load_parts(path: Path) -> list[Part]:
    """Return what `save_parts` wrote."""
    return [Part(**{**entry, "paths": tuple(entry["paths"])}) for entry in read_json(path)]


def read_members(
    part: Part, facts: list[dict], scratch: Path
) -> Iterator[tuple[dict, bytes | None]]:
    """Yield the facts (`key`, `member`, `offset`, `bytes`) of images of one part with their bytes.

    None stands for bytes that are not to be had any more. A part whose members have no offset is
    spooled below `scratch` first.
    """
    if direct(part):
        for fact in facts:
            yield fact, _or_none(fetch, part, fact["member"], fact["offset"], fact["bytes"])
        return
    with (
        tempfile.TemporaryDirectory(dir=scratch) as spool,
        PartReader(part, Path(spool), ()) as reader,
    ):
        members = {member.key: member for member in reader.members}
        for fact in facts:
            yield (
                fact,
                _or_none(reader.read, members[fact["key"]]) if fact["key"] in members else None,
            )


def _or_none(read: Callable[..., bytes], *args: object) -> bytes | None:
    try:
        return read(*args)
    except (OSError, ImageError):
        return None


def changed(part: str) -> LvdError:
    """Return the error of a part whose images are no longer those that were embedded."""
    return LvdError(f"part {part} changed while the run was going on: run the same command again")
