"""A folder behind a URL, worked on through a folder of this machine: its copy.

All code works on local folders. One that holds `MARK` is a copy: what is committed in it lies behind
the URL first, and what it lacks is fetched when it is asked for. A file is never there in part, as a
store shows no object before it is whole; a unit of several files is there when its manifest is,
which comes last and goes first.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import LvdError
from shared.failures import retry, reword
from shared.locks import scratch_folder
from shared.storage import digest_file, dumps, fingerprint, read_json, written_whole

MARK = ".store.json"
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

    def put_unit(self, built: Path, out: Path, manifest: str) -> None:
        """Store the files of the folder `built` as the unit `out`, the file `manifest` last."""
        for path in sorted(built.iterdir(), key=lambda path: (path.name == manifest, path.name)):
            retry(self._system.put_file, str(path), self._place(out / path.name))

    def fetch_unit(self, out: Path, manifest: str) -> bool:
        """Fetch a unit, whose manifest lists its other files; False where it is not committed.

        What arrives is held against the manifest's hashes. Raises LvdError for one that names files
        elsewhere.
        """
        written = self._read(out / manifest)
        if written is None:
            return False
        beside = self._scratch / f"{fingerprint(str(out))}-{os.getpid()}-{threading.get_ident()}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            for name, entry in _listed_files(written).items():
                if Path(name).name != name or name == "..":
                    raise LvdError(
                        f"{self.url_of(out / manifest)} names {name}, no file of its unit"
                    )
                retry(self._download, out / name, beside / name, entry["sha256"])
            (beside / manifest).write_bytes(written)
            out.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # another process was faster
                beside.rename(out)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return out.exists()

    def remove_unit(self, out: Path, manifest: str) -> None:
        """Remove a unit from the store, its manifest first."""
        self.remove(out / manifest)
        self._system.invalidate_cache()
        for place in retry(self._system.find, self._place(out)):
            retry(self._system.rm_file, place)

    @property
    def _scratch(self) -> Path:
        folder = self.copy / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

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
            data: bytes = retry(self._system.cat_file, self._place(path))
            return data
        except FileNotFoundError:
            return None

    def _write(self, path: Path, data: bytes) -> None:
        retry(self._system.pipe_file, self._place(path), data)

    def _download(self, path: Path, target: Path, sha256: str) -> None:
        self._system.get_file(self._place(path), str(target))
        if digest_file(target) != sha256:
            raise ConnectionError(f"{self.url_of(path)} did not arrive as it was stored")


@contextmanager
def opened(url: str, option: str, marker: str) -> Iterator[Path]:
    """Give a new local folder that stands for the folder `url`, and is removed at the end.

    The small file `marker` is written
    to the store at once. Raises LvdError, in one line with `option`, where that fails.
    """
    with new_copy() as copy:
        store = Store(url.rstrip("/"), copy)
        with reword_store(option, url):
            (copy / MARK).write_text(dumps({"url": store.url}))
            if not store.fetch(copy / marker):
                (copy / marker).write_text(dumps({"format": 2}))
                store.put(copy / marker)
        yield copy


def _listed_files(manifest: bytes) -> dict[str, dict[str, Any]]:
    """Return what a manifest says of the files of its unit; none where it is damaged."""
    try:
        files: dict[str, dict[str, Any]] = json.loads(manifest)["files"]
        return files
    except (ValueError, KeyError, TypeError):
        return {}


@contextmanager
def new_copy() -> Iterator[Path]:
    """Give a new folder below the system's folder for temporary files (TMPDIR), gone at the end.

    What killed processes have left there goes first.
    """
    with scratch_folder(Path(tempfile.gettempdir()) / "lvd-stores") as copy:
        yield copy


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
    for folder in path.parents:
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
