"""Reads a part: its images in the order of their keys, as bytes, whatever the part is stored as.

Content is untrusted. A damaged part or member gives problems to report, never an exception; what
does raise is the storage itself (a missing file, a network that fails), so that it is retried.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING

from shared.datasets.dataset import Part
from shared.datasets.filetypes import extension, kind_of
from shared.datasets.sidecars import LARGEST_NOTE, Note, note_from_json, note_from_text, read_table
from shared.datasets.tars import TarEntry, list_tar
from shared.errors import LvdError
from shared.keys import numbered, shown, stem, within_part
from shared.pictures.images import SIGNATURE, ImageError, is_image
from shared.storage.failures import raise_if_storage
from shared.storage.remote import ends_early, is_remote, locate, open_binary, read_head, read_range

if TYPE_CHECKING:
    from shared.datasets.selection_lists import ListedImage

LARGEST_MEMBER = 512 << 20
"""Bytes of the largest image file that is read."""

_CHUNK = 1 << 20
_MOST_PROBLEMS = 20
_MOST_EXAMPLES = 3
# A compressed tar of pictures hardly grows when it is opened; one that grows more than this is
# meant to fill the disk.
_MOST_GROWTH = 100
_FREE_GROWTH = 1 << 30


@dataclass(frozen=True)
class Member:
    """An image of a part. `problem` is "" or why its bytes cannot be read.

    `offset` is the place of its bytes in the part's own file, where that is an uncompressed tar.
    `columns` holds the asked-for columns, None for what nothing says.
    """

    key: str
    member: str
    offset: int | None
    size: int
    problem: str = ""
    url: str | None = None
    caption: str | None = None
    columns: dict[str, object] = field(default_factory=dict)


class PartReader:
    """Lists a part's images and reads their bytes; a context manager.

    `members` are all images of the part, broken ones too, sorted by key; `problems` says what is
    wrong with the part itself. `ignored` counts the files that are no images by name or content,
    nor sidecars; `ignored_examples` names a few. Remote tars, compressed ones and the images of
    Parquet files are copied to a nameless file in `scratch`, which is gone when the reader is.
    `beside` are the extensions of files beside an image that `read_beside` is to find, or in a
    Parquet file its columns.
    """

    def __init__(
        self,
        part: Part,
        scratch: Path,
        columns: Sequence[str] = (),
        beside: Sequence[str] = (),
    ) -> None:
        self.part = part
        self.members: list[Member] = []
        self.problems: list[str] = []
        self.ignored = 0
        self.ignored_examples: list[str] = []
        self._scratch = scratch
        self._columns = tuple(columns)
        self._beside = tuple(beside)
        self._ranges: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        self._file: IO[bytes] | None = None
        self._place: dict[str, int] = {}
        self._path: dict[str, str] = {}
        self._listed: dict[str, ListedImage] = {}

    def __enter__(self) -> PartReader:
        try:
            readers = {
                **{"tar": self._tar, "folder": self._folder},
                **{"parquet": self._parquet, "list": self._list},
            }
            self.members = sorted(readers[self.part.format](), key=lambda member: member.key)
        except BaseException:
            self.__exit__()
            raise
        more = len(self.problems) - _MOST_PROBLEMS
        if more > 0:
            self.problems[_MOST_PROBLEMS:] = [f"and {more} more"]
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, member: Member) -> bytes:
        """Return the bytes of one of `members`; safe to call from several threads.

        Raises ImageError with the member's problem if it has one; LvdError or the storage's own
        error where the bytes are not to be had any more.
        """
        if member.problem:
            raise ImageError(member.problem)
        if self.part.format == "folder":
            return read_range(locate(self.part.root, self._path[member.key]), 0, member.size)
        if self.part.format == "list":
            return _read_listed(self._listed[member.key])
        assert self._file is not None  # opened by `members`
        return _pread(self._file.fileno(), self._place[member.key], member.size, self._location)

    def read_beside(self, member: Member) -> dict[str, bytes]:
        """Return by extension what lies beside one of `members`, of what the reader was asked for.

        What is larger than `LARGEST_NOTE`, and what is a picture, is left out.
        """
        if self.part.format == "list":
            return {}
        if self.part.format == "folder":
            found = {end: self._read_sidecar(self._path[member.key], end) for end in self._beside}
        else:
            assert self._file is not None  # opened by `members`
            found = {
                end: _pread(self._file.fileno(), offset, size, self._location)
                for end, (offset, size) in self._ranges[member.key].items()
            }
        return {
            end: data
            for end, data in found.items()
            if data is not None and len(data) <= LARGEST_NOTE and not is_image(data[:SIGNATURE])
        }

    @cached_property
    def _location(self) -> str:
        return locate(self.part.root, self.part.paths[0])

    def _tar(self) -> Iterator[Member]:
        source = open_binary(self._location)
        zipped = is_gzip(source)
        if zipped or is_remote(self._location):
            file: IO[bytes] = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115
            self._file = file
            with source:
                self._spool(source, zipped, file)
        else:
            self._file = file = source
        descriptor = file.fileno()
        images: list[TarEntry] = []
        notes: dict[str, list[TarEntry]] = defaultdict(list)
        for entry in list_tar(descriptor, self.problems):
            kind, end = kind_of(entry.name), extension(entry.name)
            if kind == "image" or (
                kind == "unknown"
                and is_image(os.pread(descriptor, min(SIGNATURE, entry.size), entry.offset))
            ):
                images.append(entry)
            elif kind == "note" or end in self._beside:
                if not entry.problem and entry.size <= LARGEST_NOTE:
                    notes[f"{stem(entry.name)}.{end}"].append(entry)
            elif kind != "hidden":
                self._ignore(entry.name)
        table = self._table()
        seen: dict[str, int] = defaultdict(int)
        keys = within_part([entry.name for entry in images])
        for entry, key in zip(images, keys, strict=True):
            trunk = stem(entry.name)
            note = table.get(trunk.rpartition("/")[2], Note())
            beside = {
                # of repeated samples, each image has the sidecar of its own turn
                end: found[min(seen[entry.name], len(found) - 1)]
                for end in dict.fromkeys(("json", "txt", *self._beside))
                if (found := notes.get(f"{trunk}.{end}"))
            }
            for end in ("json", "txt"):
                if turn := beside.get(end):
                    note = note.over(self._note(end, os.pread(descriptor, turn.size, turn.offset)))
            seen[entry.name] += 1
            member = self._member(f"{self.part.name}/{key}", entry.name, entry.size, note)
            for end in self._beside:
                if turn := beside.get(end):
                    self._ranges[member.key][end] = turn.offset, turn.size
            self._place[member.key] = entry.offset
            yield replace(
                member,
                offset=None if zipped else entry.offset,
                problem=entry.problem or member.problem,
            )

    def _spool(self, source: IO[bytes], zipped: bool, file: IO[bytes]) -> None:
        """Copy a remote or compressed tar to the scratch `file`, as far as it can be read."""
        read = gzip.GzipFile(fileobj=source).read1 if zipped else source.read
        limit = self.part.nbytes * _MOST_GROWTH + _FREE_GROWTH
        try:
            while chunk := read(_CHUNK):
                if zipped and file.tell() > limit:
                    self.problems.append(
                        f"grows over {_MOST_GROWTH} times its size: cut at {limit}"
                    )
                    break
                file.write(chunk)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.problems.append(f"gzip data ends early at byte {file.tell()}: {error}")
        file.flush()

    def _folder(self) -> Iterator[Member]:
        sizes = dict(zip(self.part.paths, self.part.sizes, strict=True))
        notes = {shown(p): p for p, size in sizes.items() if size != -1 and kind_of(p) == "note"}
        images = []
        for path, size in sizes.items():
            kind = kind_of(path)
            if kind == "image" or (
                kind == "unknown" and is_image(self._head(path, size, SIGNATURE))
            ):
                images.append(path)
            elif kind == "unknown":
                self._ignore(shown(path))
        names = [shown(path) for path in images]
        for path, name, key in zip(images, names, numbered(names), strict=True):
            note = Note()
            for end in ("json", "txt"):
                sidecar = notes.get(f"{stem(name)}.{end}")
                if sidecar is not None:
                    head = self._head(sidecar, sizes[sidecar], LARGEST_NOTE)
                    note = note.over(self._note(end, head))
            size = sizes[path]
            if size is None:
                size = self._count_bytes(path)
            member = self._member(self.part.key_prefix + key, name, size, note)
            self._path[member.key] = path
            yield member

    def _parquet(self) -> Iterator[Member]:
        from pyarrow import ArrowException

        from shared.datasets.parquet_images import spool_rows

        self._file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115
        part = self.part
        with open_binary(locate(part.root, part.paths[0])) as source:
            rows = spool_rows(
                source,
                self._file,
                self._columns,
                part.image_column,
                part.key_column,
                self.problems,
                self._beside,
            )
            try:
                for number, row in enumerate(rows):
                    key = f"{part.name}/{row.key}"
                    member = self._member(key, str(number), row.size, row.note)
                    self._place[key] = row.offset
                    for end, data in row.beside.items():
                        self._ranges[key][end] = self._file.tell(), len(data)
                        self._file.write(data)
                    yield replace(member, problem=row.problem or member.problem)
            except (ArrowException, ValueError, OSError) as error:
                raise_if_storage(error)
                self.problems.append(f"Parquet cannot be read: {_one_line(error)}")
        self._file.flush()

    def _list(self) -> Iterator[Member]:
        from pyarrow import ArrowException

        from shared.datasets.selection_lists import read_list

        with open_binary(self._location) as source:
            try:
                for row in read_list(source):
                    member = self._member(
                        f"{self.part.name}/{row.key}", row.key, row.size, row.note
                    )
                    self._listed[member.key] = row
                    yield member
            except (ArrowException, ValueError, OSError) as error:
                raise_if_storage(error)
                self.problems.append(f"the list cannot be read: {_one_line(error)}")

    def _member(self, key: str, name: str, size: int, note: Note) -> Member:
        problem = size_problem(size)
        if size < 0:
            problem, size = "a link that leads to no file", 0
        columns = {name: note.columns.get(name) for name in self._columns}
        return Member(key, name, None, size, problem, note.url, note.caption, columns)

    def _note(self, end: str, data: bytes) -> Note:
        return note_from_json(data, self._columns) if end == "json" else note_from_text(data)

    def _read_sidecar(self, path: str, end: str) -> bytes | None:
        """Return the first bytes of the file beside an image of a folder, more than it may hold."""
        try:
            with open_binary(locate(self.part.root, f"{stem(path)}.{end}")) as source:
                return source.read(LARGEST_NOTE + 1)
        except (FileNotFoundError, IsADirectoryError):
            return None

    def _table(self) -> dict[str, Note]:
        if self.part.table is None:
            return {}
        from pyarrow import ArrowException

        with open_binary(locate(self.part.root, self.part.table)) as source:
            try:
                return read_table(source, self._columns)
            except (ArrowException, ValueError, OSError) as error:
                raise_if_storage(error)
                self.problems.append(f"{shown(self.part.table)} cannot be read: {_one_line(error)}")
                return {}

    def _ignore(self, name: str) -> None:
        self.ignored += 1
        if len(self.ignored_examples) < _MOST_EXAMPLES:
            self.ignored_examples.append(name)

    def _head(self, path: str, size: int | None, most: int) -> bytes:
        return read_head(locate(self.part.root, path), size, most)

    def _count_bytes(self, path: str) -> int:
        with open_binary(locate(self.part.root, path)) as source:
            return source.seek(0, os.SEEK_END)


def size_problem(size: int) -> str:
    """Return why an image of so many bytes is not read, "" where it is."""
    if size <= LARGEST_MEMBER:
        return ""
    return f"larger than {LARGEST_MEMBER >> 20} MiB: {size} bytes"


def _read_listed(image: ListedImage) -> bytes:
    """Return the bytes of an image that a list names; LvdError where they are other ones by now."""
    data = read_range(image.location, image.offset, image.size)
    if image.sha256 and hashlib.sha256(data).hexdigest() != image.sha256:
        raise LvdError(
            f"{image.location}: the image {image.key} has changed since it was listed (sha256): make "
            "the list anew"
        )
    return data


def _pread(descriptor: int, offset: int, size: int, location: str) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # some network file systems stop early
        some = os.pread(descriptor, size - len(data), offset + len(data))
        if not some:
            raise ends_early(location, offset + len(data), offset + size)
        data += some
    return data


def is_gzip(source: IO[bytes]) -> bool:
    """Tell whether a file, read from its start, is compressed; it is left there."""
    magic = source.read(2)
    source.seek(0)
    return magic == b"\x1f\x8b"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
