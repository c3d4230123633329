"""A folder behind a URL, worked on through a folder of this machine: its copy.

All code works on local folders. In a copy (`store_copies`), what is committed lies behind the URL
first, and what is not here is fetched when it is opened: its paths are `StoredPath`s. A file is never
there in part, as a store shows no object before it is whole; a unit of several files is there when its
manifest is, which comes last and goes first.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PosixPath
from typing import Any, TypeVar

from shared.errors import LvdError
from shared.storage.failures import retry, reword
from shared.storage.files import digest_file, dumps, fingerprint, read_json, written_whole
from shared.storage.locks import locked
from shared.storage.store_copies import (
    MANIFESTS,
    MARK,
    ROOM,
    SCRATCH,
    copy_here,
    make_room,
    mark,
    new_copy,
    touch,
)

MANIFEST = "unit.json"
"""The file of a unit that says what its other files are."""
UNITS_DEEP = 3
"""A unit lies so deep in its copy: in the folder of a stage's address."""
LOCKS = 64
"""Files of units that processes of a machine fetch side by side, at most."""
AT_ONCE = 16
"""Files or units that are asked for side by side."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Store:
    """The folder `url`, and `copy`, the local folder that stands for it."""

    url: str
    copy: Path

    def url_of(self, path: Path) -> str:
        """Return where a file of the copy lies in the store."""
        return "/".join([self.url, *path.relative_to(self.copy).parts])

    def fetch(self, path: Path) -> bool:
        """Fetch a small file that is read whole; False where the store has none."""
        data = self._read(path)
        if data is None:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, self._scratch) as beside:
            beside.write_bytes(data)
        return True

    def fetch_whole(self, path: Path, target: Path, sha256: str) -> None:
        """Fetch a file of any size into `target`, and hold it against its hash."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target, self._scratch) as beside:
            retry(self._download, path, beside, sha256)

    def put(self, path: Path) -> None:
        """Store a small file of the copy."""
        self._write(path, path.read_bytes())

    def remove(self, path: Path) -> None:
        """Remove a file from the store, if it is there."""
        with suppress(FileNotFoundError):
            retry(self._system.rm_file, self._place(path))

    def has_file(self, path: Path) -> bool:
        """Tell whether a file is in the store."""
        return self._read(path) is not None

    def has_files(self, folder: Path) -> bool:
        """Tell whether there is a file below a folder of the store."""
        self._system.invalidate_cache()
        try:
            return bool(retry(self._system.find, self._place(folder)))
        except FileNotFoundError:
            return False

    def put_unit(self, built: Path, out: Path) -> None:
        """Store the files of the folder `built` as the unit `out`, the manifest last."""
        for path in sorted(built.iterdir(), key=lambda path: (path.name == MANIFEST, path.name)):
            retry(self._system.put_file, str(path), self._place(out / path.name))
        make_room(self.copy, sum(path.stat().st_size for path in built.iterdir()))

    def manifest(self, out: Path) -> bytes | None:
        """Return what is written in the manifest of a unit; None where it is not committed."""
        kept = self._kept_manifest(out)
        for path in (out / MANIFEST, kept):
            with suppress(FileNotFoundError, NotADirectoryError):
                return Path(str(path)).read_bytes()
        written = self._read(out / MANIFEST)
        if written is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(kept, self._scratch) as beside:
                beside.write_bytes(written)
        return written

    def fetch_file(self, path: Path) -> bool:
        """Fetch a file of a unit; False where that is not committed, or has none of that name.

        What arrives is held against the hash in the manifest. Processes of this machine fetch it once.
        Raises LvdError for a manifest that names files elsewhere.
        """
        out = path.parent
        written = self.manifest(out)
        files = {} if written is None else _listed_files(written)
        for name in files:
            if Path(name).name != name or name == "..":
                raise LvdError(f"{self.url_of(out / MANIFEST)} names {name}, no file of its unit")
        if path.name not in files:
            return False
        about = fingerprint(str(path.relative_to(self.copy)))
        (self.copy / "locks").mkdir(exist_ok=True)
        with locked(self.copy / "locks" / str(int(about, 16) % LOCKS), None):
            if path.exists():
                return True
            beside = self._scratch / f"{about}-{os.getpid()}-{threading.get_ident()}"
            try:
                retry(self._download, path, beside, files[path.name]["sha256"])
                out.mkdir(parents=True, exist_ok=True)
                beside.rename(path)
            finally:
                beside.unlink(missing_ok=True)
        make_room(self.copy, files[path.name]["bytes"])
        return True

    def remove_unit(self, out: Path) -> None:
        """Remove a unit from the store, its manifest first."""
        self._kept_manifest(out).unlink(missing_ok=True)
        self.remove(out / MANIFEST)
        self.remove_all(out)

    def remove_all(self, folder: Path) -> None:
        """Remove what is below a folder of the store, the manifests of units first."""
        self._system.invalidate_cache()
        found = retry(self._system.find, self._place(folder))
        found.sort(key=lambda place: (not place.endswith(f"/{MANIFEST}"), place))
        for place in found:
            retry(self._system.rm_file, place)

    @property
    def _scratch(self) -> Path:
        folder = self.copy / SCRATCH
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _kept_manifest(self, out: Path) -> Path:
        return Path(str(self.copy / MANIFESTS / out.relative_to(self.copy)) + ".json")

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        import fsspec

        system, root = fsspec.core.url_to_fs(self.url)
        return system, root.rstrip("/")

    @property
    def _system(self) -> Any:
        return self._remote[0]

    def _place(self, path: Path) -> str:
        return "/".join([self._remote[1], *path.relative_to(self.copy).parts])

    def _read(self, path: Path) -> bytes | None:
        try:
            # without a range s3fs asks for the size first, or lists what lies below
            data: bytes = retry(self._system.cat_file, self._place(path), start=0)
            return data
        except FileNotFoundError:
            return None

    def _write(self, path: Path, data: bytes) -> None:
        retry(self._system.pipe_file, self._place(path), data)

    def _download(self, path: Path, target: Path, sha256: str) -> None:
        self._system.get_file(self._place(path), str(target))
        if digest_file(target) != sha256:
            raise ConnectionError(f"{self.url_of(path)} did not arrive as it was stored")


class StoredPath(PosixPath):
    """A path in the copy of a store: a file of a unit is fetched when it is opened and not here.

    Pickled, it becomes the path of the same file in the copy of the
    machine that it comes to; a file of the run's scratch, which is small, is then fetched at once.
    """

    def __fspath__(self) -> str:
        path = str(self)
        if os.path.exists(path):  # noqa: PTH110 (it would call this)
            touch(os.path.dirname(path))  # noqa: PTH120
        elif (store := store_of(Path(path))) is not None:
            inside = Path(path).relative_to(store.copy).parts
            if len(inside) > UNITS_DEEP and inside[0] != SCRATCH:
                store.fetch_file(Path(path))
        return path

    def __reduce__(self) -> Any:
        store = store_of(self / MARK)
        if store is None:
            return Path, (str(self),)
        room = read_json(store.copy / MARK)["room"]
        inside = self.relative_to(store.copy).parts
        return _arrive, (store.url, room, store.copy.name, inside)


def _arrive(url: str, room: int, name: str, inside: tuple[str, ...]) -> StoredPath:
    """Return the path of a file in this machine's copy of a store."""
    copy = copy_here(url, room, name)
    path = copy.joinpath(*inside)
    if len(inside) == UNITS_DEEP and inside[0] == SCRATCH and not path.exists():
        Store(url, copy).fetch(path)
    return StoredPath(path)


@contextmanager
def opened(url: str, option: str, marker: str) -> Iterator[Path]:
    """Give a new local folder that stands for the folder `url`, and is removed at the end.

    The small file `marker` is written
    to the store at once. Raises LvdError, in one line with `option`, where that fails.
    """
    with new_copy() as copy:
        store = Store(url.rstrip("/"), copy)
        with reword_store(option, url):
            mark(copy, store.url, ROOM)
            if not store.fetch(copy / marker):
                (copy / marker).write_text(dumps({"format": 2}))
                store.put(copy / marker)
        yield StoredPath(copy)


def _listed_files(manifest: bytes) -> dict[str, dict[str, Any]]:
    """Return what a manifest says of the files of its unit; none where it is damaged."""
    try:
        files: dict[str, dict[str, Any]] = json.loads(manifest)["files"]
        return files
    except (ValueError, KeyError, TypeError):
        return {}


@contextmanager
def reword_store(option: str, url: str) -> Iterator[None]:
    """Turn what fails of a store into one line with the option that names it."""
    try:
        with reword(f"{option} {url}"):
            yield
    except (ImportError, ValueError) as error:
        raise LvdError(
            f"{option} {url}: {error}: name a folder, or a URL that fsspec reads"
        ) from error


def store_of(path: Path) -> Store | None:
    """Return the store that a path is a copy of a part of; None for a local path."""
    for folder in Path(str(path)).parents:
        try:
            return Store(read_json(folder / MARK)["url"], folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return None


def is_there(path: Path) -> bool:
    """Tell whether a small file is there, here or in the store; then it is here."""
    if path.exists():
        return True
    store = store_of(path)
    return store is not None and store.fetch(path)


def publish(path: Path) -> str:
    """Store a small file that was written, where its folder is a copy; return its path or URL."""
    store = store_of(path)
    if store is None:
        return str(path)
    store.put(path)
    return store.url_of(path)


def remove_given(scratch: Path) -> None:
    """Remove from the store what a run has published of its scratch folder for its units."""
    store = store_of(scratch)
    if store is not None:
        for path in scratch.iterdir():
            if path.is_file():
                store.remove(path)


def remove_folder(folder: Path) -> None:
    """Remove all that the store has below a folder of its copy, manifests of units first."""
    store = store_of(folder)
    if store is not None:
        store.remove_all(folder)


def remove(path: Path) -> None:
    """Remove a small file, here and from the store."""
    path.unlink(missing_ok=True)
    store = store_of(path)
    if store is not None:
        store.remove(path)


def side_by_side(function: Callable[[T], R], over: Iterable[T], place: Path) -> list[R]:
    """Return `function` of each, several at a time where `place` is the copy of a store."""
    if store_of(place) is None:
        return [function(each) for each in over]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, over))
