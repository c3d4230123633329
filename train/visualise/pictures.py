"""Reads the pictures to look at: the first of a dataset by key, or those of given keys."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from shared.datasets.dataset import DatasetSettings, Part, list_parts
from shared.datasets.parts import Member, PartReader
from shared.errors import LvdError
from shared.pictures.images import ImageError, decode
from shared.progress import warn
from train.visualise.overlays import central_square

_MOST_PIXELS = 50_000_000
_MOST_NAMED = 20


@dataclass
class Pictures:
    """Decoded pictures by key, and what could not be shown."""

    squares: dict[str, Image.Image] = field(default_factory=dict)
    """The central square of each."""
    data: dict[str, bytes] = field(default_factory=dict)
    """The whole pictures, as they are stored."""
    broken: int = 0
    reasons: dict[str, str] = field(default_factory=dict)
    """Why images cannot be decoded, by key; of the first broken ones."""
    more: bool = False
    """Others follow the last one."""


def first_pictures(role: str, path: str, most: int, side: int) -> Pictures:
    """Return the first `most` pictures that can be decoded: parts by name, images in them by key.

    Squares are at most `side` pixels wide. The broken ones before the last picture are counted in a
    warning. Raises LvdError where none is whole.
    """
    chosen = Pictures()
    for member, reader in _members(role, path):
        if len(chosen.squares) == most:
            chosen.more = True
            break
        try:
            data = reader.read(member)
            image = decode(data, max_pixels=_MOST_PIXELS)
        except ImageError as error:
            chosen.broken += 1
            if len(chosen.reasons) < _MOST_NAMED:
                chosen.reasons[member.key] = str(error)
            continue
        chosen.squares[member.key] = central_square(image, min(side, *image.size))
        chosen.data[member.key] = data
    key, reason = next(iter(chosen.reasons.items()), ("", "there is none"))
    if not chosen.squares:
        raise LvdError(
            f"{role}: no image at {path!r} can be decoded ({reason}): name another place"
        )
    if chosen.broken:
        warn(
            f"{role}: {chosen.broken} images cannot be decoded and are left out (the first is "
            f"{key}: {reason})"
        )
    return chosen


def squares_of(role: str, path: str, keys: Collection[str], side: int) -> dict[str, Image.Image]:
    """Return the central squares, `side` pixels wide, of the images of some keys."""
    missing, found = set(keys), {}
    for member, reader in _members(role, path):
        if member.key in missing:
            missing.remove(member.key)
            with suppress(ImageError):  # it changed since its features were made
                image = decode(reader.read(member), reduce_to=2 * side)
                found[member.key] = central_square(image, side)
        if not missing:
            break
    return found


def _members(role: str, path: str) -> Iterator[tuple[Member, PartReader]]:
    """Yield the images of a dataset; those of a folder of images in the order of their keys."""
    parts = list_parts(role, DatasetSettings(path=path))
    loose = [part for part in parts if part.format == "folder"]
    groups: list[list[Part]] = [[part] for part in parts if part.format != "folder"]
    with tempfile.TemporaryDirectory(prefix="lvd-") as scratch:
        for group in [loose, *groups]:
            with ExitStack() as stack:
                readers = [stack.enter_context(PartReader(part, Path(scratch))) for part in group]
                for reader in readers:
                    if reader.problems:
                        warn(f"{role}: {reader.part.name}: {'; '.join(reader.problems)}")
                members = [(member, reader) for reader in readers for member in reader.members]
                yield from sorted(members, key=lambda found: found[0].key)
