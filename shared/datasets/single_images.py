"""Reads single images of a part from where they lie, without listing it."""

from __future__ import annotations

from shared.datasets.dataset import Part
from shared.datasets.parts import is_gzip
from shared.storage.remote import is_remote, locate, open_binary, prefetch_range, read_range


def direct(part: Part) -> bool:
    """Tell whether `fetch` reads this part: a folder, or a tar that is not compressed."""
    if part.format != "tar":
        return part.format == "folder"
    with open_binary(locate(part.root, part.paths[0])) as source:
        return not is_gzip(source)


def fetch(part: Part, member: str, offset: int | None, size: int) -> bytes:
    """Return the bytes of one image of a part that is `direct`, without listing the part.

    Raises LvdError or the storage's own error where they are not to be had any more.
    """
    return read_range(*_place_of(part, member, offset), size)


def read_ahead(part: Part, member: str, offset: int | None, size: int) -> bool:
    """Have the system begin to read what `fetch` is asked for soon; False where that is remote."""
    if is_remote(part.root):
        return False
    prefetch_range(*_place_of(part, member, offset), size)
    return True


def _place_of(part: Part, member: str, offset: int | None) -> tuple[str, int]:
    """Return the file that an image is in, and where it begins there."""
    if part.format == "folder":
        return locate(part.root, part.path_of(member)), 0
    return locate(part.root, part.paths[0]), offset or 0
