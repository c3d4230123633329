"""Finds the files that a path stands for: a file, a folder, a glob or a brace list, here or remote.

Everything comes back relative to a root, which is the longest prefix without a wildcard (for one
file its parent), so that names built from it are the same on every machine.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

_WILDCARD = re.compile(r"[*?\[{]")
_MOST_PATTERNS = 1_000_000


class ListingError(Exception):
    """A path that cannot be listed; its text says why, as the middle of a sentence."""


@dataclass(frozen=True)
class File:
    """One file: its path below the root, its size in bytes and what changes when it does.

    `stamp` is its time or ETag. `version` tells it from any other file that was ever there; "" where
    the storage has nothing that does.
    """

    path: str
    size: int
    stamp: str
    version: str = ""


@dataclass(frozen=True)
class Place:
    """What a path stands for: `files`, and `around`, all that lies beside them (sidecars, tables)."""

    root: str
    files: list[File]
    around: dict[str, File] = field(repr=False)


def is_remote(path: str) -> bool:
    """Tell a URL from a local path."""
    return "://" in path


def locate(root: str, path: str) -> str:
    """Return the full path or URL of a file below a root."""
    return root.rstrip("/") + "/" + path if is_remote(root) else str(Path(root, path))


def open_binary(location: str) -> IO[bytes]:
    """Open a local path or a URL for reading bytes."""
    if is_remote(location):
        import fsspec

        return fsspec.open(location, "rb").open()
    return Path(location).open("rb")


def expand(path: str) -> Place:
    """Return the files that `path` stands for, sorted; hidden ones and their folders are left out.

    Raises ListingError where the path is not there, or a name of its brace list is not.
    """
    if is_remote(path):
        return _expand_remote(path)
    return _expand(_LocalFiles(), str(Path(path).expanduser()))


def _expand_remote(url: str) -> Place:
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    if "::" in url:
        raise ListingError("chained URLs are not supported: give the inner URL alone")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ListingError(f"no reader for this URL: {error}") from error
    if isinstance(system, LocalFileSystem):
        return _expand(_LocalFiles(), path)
    try:
        place = _expand(_RemoteFiles(system), path)
    except OSError as error:
        raise ListingError(f"it cannot be listed: {error}") from error
    return Place(system.unstrip_protocol(place.root), place.files, place.around)


def _expand(system: _LocalFiles | _RemoteFiles, path: str) -> Place:
    """Expand a path on one file system: a name that exists as it stands is never a pattern."""
    entry = system.find(path)
    if entry is not None and entry.size < 0:
        root = system.full(path)
        inside = dict(system.walk(root))
        return _place(root, inside, inside)
    root, names = system.parent(path), [path]
    if entry is None:
        wildcard = _WILDCARD.search(path)
        if wildcard is None:
            raise ListingError("it does not exist, or may not be read")
        root = system.parent(path[: wildcard.start()] + "x")
        patterns = _braces(path)
        names = [n for p in patterns for n in (system.glob(p) if glob.has_magic(p) else [p])]
    names = list(dict.fromkeys(map(system.full, names)))
    around: dict[str, File] = {}
    for folder in sorted(set(map(system.parent, names))):
        around.update(system.beside(folder))
    found: dict[str, File] = {}
    for name in names:
        entry = around.get(name) or system.find(name)
        if entry is None:
            raise ListingError(f"{name} does not exist")
        found.update([(name, entry)] if entry.size >= 0 else system.walk(name))
    return _place(root, found, around | found)


def _place(root: str, found: dict[str, File], around: dict[str, File]) -> Place:
    files = sorted(_below(root, found), key=lambda file: file.path)
    return Place(root, files, {file.path: file for file in _below(root, around)})


def _braces(path: str) -> Iterator[str]:
    import braceexpand

    try:
        names = list(
            itertools.islice(braceexpand.braceexpand(path, escape=False), _MOST_PATTERNS + 1)
        )
    except (braceexpand.UnbalancedBracesError, ValueError) as error:
        raise ListingError(f"its brace list is not well formed: {error}") from error
    if len(names) > _MOST_PATTERNS:
        raise ListingError(f"its brace list has over {_MOST_PATTERNS} names")
    yield from dict.fromkeys(names)


def _below(root: str, found: dict[str, File]) -> Iterator[File]:
    prefix = root.rstrip("/") + "/"
    for path, file in found.items():
        yield replace(file, path=path.removeprefix(prefix))


class _LocalFiles:
    """The local file system. A folder is found with size -1, and only regular files are listed."""

    def full(self, path: str) -> str:
        return os.path.abspath(path)  # noqa: PTH100 - `..` goes, links stay

    def parent(self, path: str) -> str:
        return str(Path(self.full(path)).parent)

    def find(self, path: str) -> File | None:
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            return None
        if stat.S_ISDIR(status.st_mode):
            return File(path, -1, "")
        return _file(path, status) if stat.S_ISREG(status.st_mode) else None

    def glob(self, pattern: str) -> list[str]:
        return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - takes absolute ones

    def beside(self, folder: str) -> Iterator[tuple[str, File]]:
        try:
            yield from self._scan(folder, ancestors=None)
        except ListingError:  # a file may be open to reading in a folder that is not
            return

    def walk(self, folder: str) -> Iterator[tuple[str, File]]:
        return self._scan(folder, ancestors=frozenset())

    def _scan(
        self, folder: str, ancestors: frozenset[tuple[int, int]] | None
    ) -> Iterator[tuple[str, File]]:
        if ancestors is not None:
            status = Path(folder).stat()
            identity = (status.st_dev, status.st_ino)
            if identity in ancestors:  # a link back up
                return
            ancestors = ancestors | {identity}
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise ListingError(f"{folder} cannot be listed: {error.strerror}") from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                status = entry.stat()
            except OSError:  # a broken link: a file whose bytes are not to be had
                yield entry.path, File(entry.path, 0, "broken")
                continue
            if stat.S_ISREG(status.st_mode):
                yield entry.path, _file(entry.path, status)
            elif stat.S_ISDIR(status.st_mode) and ancestors is not None:
                yield from self._scan(entry.path, ancestors)


class _RemoteFiles:
    """An fsspec file system, seen the same way."""

    def __init__(self, system: Any) -> None:
        self.system = system
        system.invalidate_cache()

    def full(self, path: str) -> str:
        return path.rstrip("/")

    def parent(self, path: str) -> str:
        return path.rstrip("/").rpartition("/")[0]

    def find(self, path: str) -> File | None:
        try:
            return self._file(path, self.system.info(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def glob(self, pattern: str) -> list[str]:
        start = len(self.parent(pattern[: _WILDCARD.search(pattern).start()] + "x"))
        return sorted(path for path in self.system.glob(pattern) if not _hidden(path[start:]))

    def beside(self, folder: str) -> Iterator[tuple[str, File]]:
        try:
            infos = self.system.ls(folder, detail=True)
        except Exception:  # a web server need not list its folders, and says so in many ways
            return
        for info in infos:
            if info["type"] == "file" and not _hidden(info["name"][len(folder) :]):
                yield info["name"], self._file(info["name"], info)

    def walk(self, folder: str) -> Iterator[tuple[str, File]]:
        for path, info in self.system.find(folder, detail=True).items():
            if info["type"] == "file" and not _hidden(path[len(folder) :]):
                yield path, self._file(path, info)

    def _file(self, path: str, info: dict[str, Any]) -> File:
        if info["type"] == "directory":
            return File(path, -1, "")
        marks = ("ETag", "etag", "checksum", "md5Hash", "LastModified", "mtime", "created")
        stamp = next((f"{mark}={info[mark]}" for mark in marks if info.get(mark)), "")
        return File(path, int(info.get("size") or 0), stamp, version=stamp)


def _hidden(path: str) -> bool:
    return any(name.startswith(".") for name in path.split("/"))


def _file(path: str, status: os.stat_result) -> File:
    # The time of the last change of the inode cannot be set back, as that of the content can.
    version = f"{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_dev}-{status.st_ino}"
    return File(path, status.st_size, str(status.st_mtime_ns), version)
