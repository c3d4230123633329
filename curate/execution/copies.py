"""Copies of a finished result in other places: folders, or whatever fsspec reaches.

`run.json`, by which a result is known, goes first from an earlier copy and comes last. Of a copy that
was cut off, and of an earlier one, what has the same hash stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from curate.execution.output import FILES, RUN, note_hashes
from curate.report.timings import TIMED
from shared.errors import LvdError
from shared.keys import shown
from shared.progress import stage_bar
from shared.storage.failures import as_line, retry
from shared.storage.files import dumps, read_json, write_json
from shared.storage.remote import is_remote

NOTE = "copying.json"
"""Holds what `files.json` says while the files are copied: those of the right size are whole."""
PARTIAL = ".partial"
AT_ONCE = 8


def require_places(places: Iterable[str], out: Path, work: Path) -> None:
    """Raise LvdError for a place that a result cannot be copied to, whatever it will be."""
    for place in places:
        said = f"export.also {shown(place)}"
        try:
            fsspec.core.url_to_fs(place)
        except (ImportError, ValueError) as error:
            raise LvdError(f"{said}: {error}: name a folder, or a URL that fsspec reads") from error
        if not is_remote(place):
            folder = Path(place).absolute()
            for own, name in ((out, "--out"), (work, "--work")):
                if folder.is_relative_to(own.absolute()) or own.absolute().is_relative_to(folder):
                    raise LvdError(
                        f"{said} and {name} {own} lie in each other: name another folder"
                    )


def note_places(out: Path, places: Iterable[str]) -> None:
    """Let `run.json` of a result say where its copies are, so that what is removed goes there too."""
    run = read_json(out / RUN)
    known = run.get("copies", [])
    named = {place if is_remote(place) else str(Path(place).absolute()) for place in places}
    if not named <= set(known):
        write_json(out / RUN, {**run, "copies": sorted({*known, *named})})
        note_hashes(out, [RUN])


def copy_result(out: Path, place: str, option: str = "export.also") -> int:
    """Let `place` hold the finished result `out`; return how many files had to be copied.

    What fails for a moment is tried again. Raises LvdError, in one line, where `place` holds what no
    run wrote, and for what goes on failing; the same call goes on from there.
    """
    try:
        return _Copy.of(out, place).bring_up_to_date()
    except Exception as error:  # storage libraries raise anything
        raise as_line(error, f"{option} {shown(place)}") from error


def remove_copy(place: str, option: str) -> None:
    """Remove what `copy_result` left at `place`, if anything; what is left of it is never taken for whole.

    Raises LvdError, in one line, for what goes on failing.
    """
    try:
        system, root = fsspec.core.url_to_fs(place)
        copy = _Copy(Path(), system, root.rstrip("/"), {})
        there = retry(copy._list)
        last = [name for name in (FILES, NOTE) if name in there]
        for name in ([RUN] if RUN in there else []) + sorted(there.keys() - {RUN, *last}) + last:
            retry(system.rm_file, copy._path(name))
    except Exception as error:  # storage libraries raise anything
        raise as_line(error, f"{option} {shown(place)}") from error


@dataclass(frozen=True)
class _Copy:
    """A place, and what is to be there."""

    out: Path
    system: Any
    root: str
    wanted: dict[str, dict[str, Any]]
    """Size and sha256 of each file of the result by name, but for `TIMED` and the two that come last."""

    @classmethod
    def of(cls, out: Path, place: str) -> _Copy:
        """Return the copy of `out` at `place`."""
        system, root = fsspec.core.url_to_fs(place)
        wanted = {name: entry for name, entry in read_json(out / FILES).items() if name != RUN}
        return cls(out, system, root.rstrip("/"), wanted)

    def bring_up_to_date(self) -> int:
        """Copy what is not there, and return how many files that was."""
        there = retry(self._list)
        if NOTE not in there and {RUN, FILES} <= there.keys():
            own = [(self.out / name).read_bytes() for name in (RUN, FILES)]
            if own == [self._read(RUN), self._read(FILES)]:
                return 0
        kept = self._clear(there)
        self._write(NOTE, dumps(self.wanted).encode())
        missing = sorted(self.wanted.keys() - kept)
        for folder in sorted({self._path(name).rpartition("/")[0] for name in missing}):
            self.system.makedirs(folder, exist_ok=True)
        with stage_bar("copy", len(missing), "files") as bar:
            pool = ThreadPoolExecutor(AT_ONCE)
            try:
                for _ in pool.map(lambda name: retry(self._put, name), missing):
                    bar.advance()
            finally:
                pool.shutdown(cancel_futures=True)
        last = [*(name for name in TIMED if (self.out / name).exists()), FILES, RUN]
        for name in last:
            self._write(name, (self.out / name).read_bytes())
        retry(self.system.rm_file, self._path(NOTE))
        return len(missing) + len(last)

    def _clear(self, there: dict[str, int]) -> set[str]:
        """Remove what is there of another result, and return what stays: what both have.

        What tells of the rest stays until that is gone.
        """
        listed = next((name for name in (NOTE, FILES) if name in there), None)
        if there and listed is None:
            raise LvdError(f"{shown(self.root)} holds files that no run wrote: name an empty place")
        known = json.loads(self._read(listed)) if listed else {}
        same = {
            name
            for name, entry in known.items()
            if self.wanted.get(name) == entry and there.get(name) == entry["bytes"]
        }
        for name in (RUN, *sorted(known.keys() - same - {RUN})):
            if name in there:
                retry(self.system.rm_file, self._path(name))
        return same

    def _list(self) -> dict[str, int]:
        """Return the size of each file that is there."""
        self.system.invalidate_cache()
        try:
            found = self.system.find(self.root, detail=True)
        except FileNotFoundError:
            return {}
        sizes = {path[len(self.root) + 1 :]: about["size"] for path, about in found.items()}
        return {name: size for name, size in sizes.items() if not name.endswith(PARTIAL)}

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _read(self, name: str) -> bytes:
        data: bytes = retry(self.system.cat_file, self._path(name))
        return data

    def _put(self, name: str) -> None:
        self.system.put_file(str(self.out / name), self._path(name))

    def _write(self, name: str, data: bytes) -> None:
        """Write a small file that is never there in part."""
        self.system.makedirs(self.root, exist_ok=True)
        retry(self.system.pipe_file, self._path(name + PARTIAL), data)
        retry(self.system.mv, self._path(name + PARTIAL), self._path(name))
