"""Lists a remote tar by its headers alone, in blocks that mostly hold several of them."""

from __future__ import annotations

from shared.datasets.dataset import Part
from shared.datasets.filetypes import kind_of
from shared.datasets.parts import Member, size_problem
from shared.datasets.tars import list_tar
from shared.keys import within_part
from shared.pictures.images import SIGNATURE, is_image
from shared.storage.remote import locate, read_range

_BLOCK = 8 << 10
"""Bytes asked for at once: a header, the sidecars behind a small image, and the next header."""


class RangedTar:
    """Reads byte ranges of a file behind a URL; the last block is kept. For one thread."""

    def __init__(self, location: str, size: int) -> None:
        """Take a file that has `size` bytes."""
        self.size = size
        self._location = location
        self._start, self._block = 0, b""

    def read(self, size: int, offset: int) -> bytes:
        """Return `size` bytes at `offset`, fewer where the tar ends before.

        Raises LvdError where it has become shorter, or the storage's own error.
        """
        size = max(0, min(size, self.size - offset))
        at = offset - self._start
        if not 0 <= at <= at + size <= len(self._block):
            wanted = min(max(size, _BLOCK), self.size - offset)
            self._start, self._block = offset, read_range(self._location, offset, wanted)
            at = 0
        return self._block[at : at + size]


def list_remote_tar(part: Part, problems: list[str]) -> list[Member]:
    """Return the images of a plain tar behind a URL, sorted by key, as a `PartReader` lists them.

    But for what sidecars say of them: only headers are read, and the first bytes of what may be an
    image by its content. `part` must know its size. Damage is appended to `problems`.
    """
    (size,) = part.sizes
    assert size is not None
    tar = RangedTar(locate(part.root, part.paths[0]), size)
    images = [
        entry
        for entry in list_tar(tar, problems)
        if (kind := kind_of(entry.name)) == "image"
        or (kind == "unknown" and is_image(tar.read(min(SIGNATURE, entry.size), entry.offset)))
    ]
    members = []
    for entry, key in zip(images, within_part([e.name for e in images]), strict=True):
        problem = entry.problem or size_problem(entry.size)
        members.append(Member(f"{part.name}/{key}", entry.name, entry.offset, entry.size, problem))
    return sorted(members, key=lambda member: member.key)
