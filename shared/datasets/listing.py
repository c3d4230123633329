"""Finds the files that a path stands for: a file, a folder, a glob or a brace list, here or remote.

Everything comes back relative to a root, which is the longest prefix without a wildcard (for one
file its parent), so that names built from it are the same on every machine.
"""

from __future__ import annotations

import errno
import glob
import itertools
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.storage.failures import kind_of, raise_if_storage, retry
from shared.storage.remote import is_remote, stamp

_WILDCARD = re.compile(r"[*?\[{]")
_MOST_PATTERNS = 1_000_000
_NOTHING = (FileNotFoundError, NotADirectoryError)


class ListingError(Exception):
    """A path that cannot be listed; its text says why, as the middle of a sentence."""


BROKEN = "broken"
"""The stamp of a link that leads nowhere: a file that had no bytes when it was listed."""


@dataclass(frozen=True)
class File:
    """One file: its path below the root, its size in bytes and what changes when it does.

    `size` is None where the storage does not tell, as web servers need not. `stamp` is its time or
    ETag. `version` tells it from any other file that was ever there; "" where the storage has
    nothing that does.
    """

    path: str
    size: int | None
    stamp: str
    version: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, which has the size -1."""
        return self.size == -1


@dataclass(frozen=True)
class Place:
    """What a path stands for: `files`, and `around`, all that lies beside them (sidecars, tables)."""

    root: str
    files: list[File]
    around: dict[str, File] = field(repr=False)


def absolute(folder: str) -> str:
    """Return a folder's path or URL as `Place.root` spells it."""
    if is_remote(folder):
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        system, path = fsspec.core.url_to_fs(folder)
        if not isinstance(system, LocalFileSystem):
            return system.unstrip_protocol(path.rstrip("/"))
        folder = path
    return _LocalFiles().full(str(Path(folder).expanduser()))


def expand(path: str, markers: Sequence[str] = ()) -> Place:
    """Return the files that `path` stands for, sorted; hidden ones and their folders are left out.

    `around` holds the files named in `markers` of every folder between the root and a file.

    Raises ListingError where the path is not there, or a name of its brace list is not, and the
    storage's own error where it fails, for a moment (after several tries) or altogether.
    """
    if is_remote(path):
        return _expand_remote(path, markers)
    return _expand(_LocalFiles(), str(Path(path).expanduser()), markers)


def _expand_remote(url: str, markers: Sequence[str]) -> Place:
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    if "::" in url:
        raise ListingError("chained URLs are not supported: give the inner URL alone")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ListingError(f"no reader for this URL: {error}") from error
    if isinstance(system, LocalFileSystem):
        return _expand(_LocalFiles(), path, markers)
    try:
        place = _expand(_RemoteFiles(system), path, markers)
    except OSError as error:
        raise_if_storage(error)
        raise ListingError(f"it cannot be listed: {error}") from error
    return Place(system.unstrip_protocol(place.root), place.files, place.around)


def _expand(system: _LocalFiles | _RemoteFiles, path: str, markers: Sequence[str]) -> Place:
    """Expand a path on one file system: a name that exists as it stands is never a pattern."""
    entry = system.find(path)
    if entry is not None and entry.is_folder:
        root = system.full(path)
        inside = dict(system.walk(root))
        return _place(root, inside, inside)
    root, names = system.parent(path), [path]
    if entry is None:
        if not _WILDCARD.search(path):
            raise ListingError("it does not exist")
        literal = _literal_folders(system, path)
        root, names = system.parent(literal + "x"), []
        for name in (literal + rest for rest in _braces(path[len(literal) :])):
            if glob.has_magic(name[len(literal) :]):
                fixed = _literal_folders(system, name)
                names += system.glob(fixed, name[len(fixed) :])
            else:
                names.append(name)
    names = list(dict.fromkeys(map(system.full, names)))
    around: dict[str, File] = {}
    folders = set(map(system.parent, names))
    for folder in sorted(folders):
        around.update(system.beside(folder))
    for folder in sorted(_between(root, folders) - folders):
        marks = [system.find(f"{folder}/{marker}") for marker in markers]
        around.update({mark.path: mark for mark in marks if mark is not None})
    found: dict[str, File] = {}
    for name in names:
        entry = around.get(name) or system.find(name)
        if entry is None:
            raise ListingError(f"{name} does not exist")
        found.update(system.walk(name) if entry.is_folder else [(name, entry)])
    return _place(root, found, around | found)


def _between(root: str, folders: set[str]) -> set[str]:
    """Return the folders below the root that lead to the given ones, and these."""
    between: set[str] = set()
    for folder in folders:
        while len(folder) > len(root) and folder not in between:
            between.add(folder)
            folder = posixpath.dirname(folder)
    return between


def _literal_folders(system: _LocalFiles | _RemoteFiles, pattern: str) -> str:
    """Return the leading folders of a pattern without a wildcard, or that exist as they stand."""
    end = 0
    for step in re.finditer("[^/]*/", pattern):
        if _WILDCARD.search(step[0]):
            entry = system.find(pattern[: step.end() - 1])
            if entry is None or not entry.is_folder:
                break
        end = step.end()
    return pattern[:end]


def _place(root: str, found: dict[str, File], around: dict[str, File]) -> Place:
    files = sorted(_below(root, found), key=lambda file: file.path)
    return Place(root, files, {file.path: file for file in _below(root, around)})


def _braces(path: str) -> Iterator[str]:
    import braceexpand

    try:
        names = list(
            itertools.islice(braceexpand.braceexpand(path, escape=False), _MOST_PATTERNS + 1)
        )
    except ValueError as error:  # braceexpand.UnbalancedBracesError is one
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
            status = retry(os.stat, path)
        except (*_NOTHING, ValueError):
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                return None
            raise
        if stat.S_ISDIR(status.st_mode):
            return File(path, -1, "")
        return _file(path, status) if stat.S_ISREG(status.st_mode) else None

    def glob(self, folders: str, pattern: str) -> list[str]:
        pattern = glob.escape(folders) + pattern
        return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - takes absolute ones

    def beside(self, folder: str) -> Iterator[tuple[str, File]]:
        try:
            yield from self._scan(folder, ancestors=None)
        except (PermissionError, *_NOTHING):  # a file may be open in a folder that is not
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
        for entry in retry(lambda: list(os.scandir(folder))):
            if entry.name.startswith("."):
                continue
            try:
                status = retry(entry.stat)
            except OSError as error:
                if not isinstance(error, _NOTHING) and error.errno != errno.ELOOP:
                    raise
                if entry.is_symlink():  # else it was removed just now
                    yield entry.path, File(entry.path, 0, BROKEN)
                continue
            if stat.S_ISREG(status.st_mode):
                yield entry.path, _file(entry.path, status)
            elif stat.S_ISDIR(status.st_mode) and ancestors is not None:
                yield from self._scan(entry.path, ancestors)


class _RemoteFiles:
    """An fsspec file system, seen the same way."""

    def __init__(self, system: Any) -> None:
        from fsspec.asyn import AsyncFileSystem
        from fsspec.spec import AbstractFileSystem

        self.system = system
        system.invalidate_cache()
        own = getattr(type(system), "_find", type(system).find)
        self._lists_trees = own not in (AsyncFileSystem._find, AbstractFileSystem.find)
        """Whether one request lists all that lies below; else fsspec leaves out what fails."""

    def full(self, path: str) -> str:
        return path.rstrip("/")

    def parent(self, path: str) -> str:
        return path.rstrip("/").rpartition("/")[0]

    def find(self, path: str) -> File | None:
        try:
            return self._file(path, retry(self.system.info, path))
        except _NOTHING:
            return None

    def glob(self, folders: str, pattern: str) -> list[str]:
        from fsspec.utils import glob_translate

        root = self.parent(folders + "x")
        depth = None if "**" in pattern else pattern.count("/") + 1
        pattern = glob.escape(folders) + pattern
        if self._lists_trees:
            paths = retry(self.system.glob, pattern)
            return sorted(path for path in paths if not _hidden(path[len(root) :]))
        matches = re.compile(glob_translate(pattern)).match
        return sorted(path for path, _ in self._tree(root, depth) if matches(path))

    def beside(self, folder: str) -> Iterator[tuple[str, File]]:
        try:
            infos = retry(self.system.ls, folder, detail=True)
        except Exception as error:
            if kind_of(error) == "transient":
                raise
            return  # a web server need not list its folders, and says so in many ways
        for info in infos:
            if info["type"] == "file" and not _hidden(info["name"][len(folder) :]):
                yield info["name"], self._file(info["name"], info)

    def walk(self, folder: str) -> Iterator[tuple[str, File]]:
        if self._lists_trees:
            found = retry(self.system.find, folder, detail=True).items()
        else:
            found = self._tree(folder, None)
        for path, info in found:
            if info["type"] == "file" and not _hidden(path[len(folder) :]):
                yield path, self._file(path, info)

    def _tree(self, folder: str, depth: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what lies down to `depth` folders below one, but for what is hidden."""
        try:
            infos = retry(self.system.ls, folder, detail=True)
        except _NOTHING:  # it was removed just now
            return
        for info in infos:
            path = info["name"].rstrip("/")
            if path == folder.rstrip("/") or _hidden(path[len(folder) :]):
                continue
            yield path, info
            if info["type"] == "directory" and depth != 1:
                yield from self._tree(path, depth and depth - 1)

    def _file(self, path: str, info: dict[str, Any]) -> File:
        if info["type"] == "directory":
            return File(path, -1, "")
        known = stamp(info)
        return File(path, info.get("size"), known, version=known)


def _hidden(path: str) -> bool:
    return any(name.startswith(".") for name in path.split("/"))


def _file(path: str, status: os.stat_result) -> File:
    # The time of the last change of the inode cannot be set back, as that of the content can.
    version = f"{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_dev}-{status.st_ino}"
    return File(path, status.st_size, str(status.st_mtime_ns), version)
