"""The folder of one run's result: built beside its place, and moved there whole at the end."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from curate.increment import CLUSTERS, REMOVED, Before
from curate.neighbours.clusters import CENTROIDS
from curate.neighbours.search import installed_faiss
from curate.plan import PARTIAL
from curate.report.datasheet import DATASHEET
from curate.report.timings import TIMED, TIMINGS, write_timings_page
from shared.config import flat
from shared.datasets.folders import describe_folder
from shared.errors import LvdError
from shared.progress import say, warn
from shared.storage.commits import unit_files
from shared.storage.files import (
    digest_file,
    link_or_copy,
    read_json,
    read_optional,
    sync_tree,
    write_json,
)
from shared.storage.locks import busy, locked
from shared.storage.stores import remove_folder

FORMAT = 1
RUN, USED, FILES = "run.json", "used.json", "files.json"
SINCE = "since"
"""The setting that names, by its address, the result that one was made since."""
ADDRESS = ".address"
AWAY = "output"
"""The folder of a WORK on a store where units of results are built for other machines."""
OWN = {
    *(RUN, USED, FILES, ADDRESS, TIMINGS, DATASHEET, CLUSTERS),
    *("shards", "selection.parquet", "embeddings", "reports", ".scratch", ".spill", ".tables"),
}
FileHash = dict[str, Any]
"""`bytes` and `sha256` of a file."""
LIBRARIES = ("lvd", "numpy", "open_clip_torch", "pillow", "pyarrow", "ray", "timm", "torch")


class Output:
    """`out`, and `out` + ".partial", where it is built; one process at a time works on it."""

    def __init__(
        self,
        out: Path,
        settings: dict[str, Any],
        replace: bool,
        name: str | None = None,
        anew: str | None = "",
        fetch: Callable[[], None] | None = None,
        is_whole: bool = True,
    ) -> None:
        """Refuse an `out`, which the user calls `name`, that holds something else, unless `replace`.

        Where `anew` is None, a run of these settings goes on from the result there if its crawl has
        grown; else it says how that could be had, if at all. `fetch` brings what that reads of `out`
        where only its `run.json` is here; `is_whole` is False where the rest is nowhere any more.
        """
        self.out = out
        self._anew = anew
        self._fetch = fetch
        self._is_whole = is_whole
        self.name = name or str(out)
        self.settings = settings
        self.partial = out.with_name(out.name + PARTIAL)
        self._old = out.with_name(f".{out.name}.replaced")
        self.scratch = self.partial / ".scratch"
        self.spill = self.partial / ".spill"
        self.tables = self.partial / ".tables"
        self.shards = self.partial / "shards"
        self.reports = self.partial / "reports"
        self.clusters = self.partial / CLUSTERS
        self.embeddings = self.partial / "embeddings"
        self._replace = replace
        self._kept: dict[str, FileHash] = {}
        self._away: Path | None = None
        self._refuse_foreign()

    def build_below(self, work: Path) -> None:
        """Let units be built below a WORK on a store, and fetched when the result is put together.

        The machines of a cluster do not see where that is done.
        """
        self._away = work / AWAY

    def _recover(self) -> None:
        """Finish a swap that was cut off between its two renames."""
        if not self.out.exists() and self._old.exists():
            whole = (self.partial / RUN).exists()
            (self.partial if whole else self._old).rename(self.out)
        if self.out.exists():
            shutil.rmtree(self._old, ignore_errors=True)

    def _refuse_foreign(self) -> None:
        if self._replace or not self.out.exists() or not any(self.out.iterdir()):
            return
        if not (self.out / RUN).exists():
            raise LvdError(
                f"--out {self.name} holds files that no run wrote: name an empty folder, or say "
                "--replace to delete them at the end of the run"
            )
        there = read_json(self.out / RUN)
        if "settings" not in there:
            whose = describe_folder(self.out) or "no result of lvd-curate"
            raise LvdError(f"--out {self.name} is {whose}; name another --out")
        own, there = flat(self.settings), flat(there["settings"])
        if self._anew is None:
            there.pop(SINCE, None)
        for key in (*own, *there):
            if there.get(key) != own.get(key):
                self._refuse(key, there.get(key), own.get(key))

    def _refuse(self, key: str, there: Any, own: Any) -> NoReturn:
        there, own = ("null" if value is None else repr(value) for value in (there, own))
        raise LvdError(
            f"--out {self.name} holds a run with {key}={there}, not {own}: name another --out, or "
            "say --replace to swap it at the end"
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process from building the same output."""
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock_file(self.out), busy(self.out)):
            self._recover()
            self._refuse_foreign()
            yield

    def stands(self, address: str) -> bool:
        """Return whether `out` already is the whole result of this address."""
        path = self.out / RUN
        return self._is_whole and path.exists() and read_json(path)["address"] == address

    def begin(self, address: str, *, adding: bool = False) -> None:
        """Prepare the partial folder; what it holds of another address is removed.

        Raises LvdError where images that were removed from `out` would come back, unless the run is
        `adding` to it: then they are known.
        """
        if not (self._replace or adding) and (
            removed := read_optional(self.out / RUN).get("removed")
        ):
            raise LvdError(
                f"--out {self.name} is without images that lvd-curate remove took out, and this run "
                f"may bring them back: add {removed[-1]['path']} to the pipeline's `lists` and say "
                "--replace, or name another --out"
            )
        note = self.partial / ADDRESS
        there = {path.name for path in self.partial.iterdir()} if self.partial.exists() else set()
        if foreign := sorted(there - OWN):
            raise LvdError(
                f"{self.partial} holds {foreign[0]}, which no run wrote: move it, or name another "
                "--out"
            )
        if not note.exists() or note.read_text() != address:
            shutil.rmtree(self.partial, ignore_errors=True)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.partial.mkdir(parents=True, exist_ok=True)
        note.write_text(address)
        if self._away is not None:
            self.spill, self.tables, self.shards = (
                self._away / f"{address}-{kind}" for kind in ("spill", "tables", "shards")
            )
        for folder in (self.reports, self.scratch):
            folder.mkdir(exist_ok=True)

    def lay_tables(self, names: Iterable[str], units: list[Path], into: Path) -> None:
        """Put the units' tables into a folder, each as one file, or as a folder of them."""
        for name in names:
            path = into / f"{name}.parquet"
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            if len(units) == 1:
                link_or_copy(units[0] / f"{name}.parquet", path)
                continue
            path.mkdir()
            for unit in units:
                link_or_copy(unit / f"{name}.parquet", path / f"{unit.name}.parquet")

    def lay_shards(self, names: Iterable[str]) -> None:
        """Put shards of these names that were built elsewhere where they belong."""
        if self._away is not None:
            (self.partial / "shards").mkdir(exist_ok=True)
            for name in names:
                for path in sorted(unit_files(self.shards / name)):
                    link_or_copy(path, self.partial / "shards" / path.name)

    def clear(self) -> None:
        """Remove what was built below a WORK on a store, once the result is in its place."""
        if self._away is not None:
            for folder in (self.spill, self.tables, self.shards):
                remove_folder(folder)

    def lay_centroids(self, folder: Path) -> None:
        """Put the centroids of a unit beside the shards, for a run that adds to this one."""
        link_or_copy(folder / CENTROIDS, self.clusters / CENTROIDS)

    def is_up_to_date(self, before: Before | None, inputs: str) -> bool:
        """Tell whether `out` is a result of these inputs that the run would go on from, or that went on.

        What a run that goes on from nothing makes is known by its address alone.
        """
        there = read_optional(self.out / RUN) if self._is_whole else {}
        if before is not None:
            goes_on = before.is_at(self.out)
        else:
            goes_on = self._anew is None and SINCE in there.get("settings", {})
        own = {**flat(self.settings), SINCE: None}
        return (
            goes_on
            and there["inputs"] == inputs
            and own == {**flat(there["settings"]), SINCE: None}
        )

    def count_images(self, crawl: str) -> int | None:
        """Return of how many images of this crawl `out` holds a result, None of none."""
        there = read_optional(self.out / RUN)
        of_crawl = there.get("datasets", {}).get("crawl", {})
        images: int | None = of_crawl.get("images") if there.get("crawl") == crawl else None
        return images

    def has_grown(self, crawl: str, images: int) -> bool:
        """Tell whether `out` is the result of a crawl that has more images now, and say what follows.

        Raises LvdError where it is not, and went on from an earlier result, so that it has more
        than its own settings.
        """
        held = self.count_images(crawl)
        if held is None or held >= images:
            since = read_optional(self.out / RUN).get("settings", {}).get(SINCE)
            if since is not None and self._anew is None:
                self._refuse(SINCE, since, None)
            return False
        have = (
            f"{self.name} holds a result of {held:,} images, and crawl {crawl} has {images:,} now"
        )
        if self._anew is not None:
            say(f"{have}: all are judged anew{self._anew}")
            return False
        say(
            f"{have}: what it exported stays, and all shards are written anew; lvd-curate update adds "
            "shards to it, run --replace judges all anew"
        )
        return True

    def fetch(self) -> None:
        """Bring what a run reads of `out` that goes on from it, where that is elsewhere."""
        if self._fetch is not None:
            self._fetch()

    def go_on_from(self, before: Before) -> None:
        """Let the result be one since that in its place, which it takes at the end."""
        self.settings = {**self.settings, SINCE: before.run["address"]}
        self._replace = True

    def keep(self, before: Before) -> None:
        """Take over the list of what was removed from the result that the run goes on from.

        Where it adds to that, its shards, too.
        """
        if read_optional(before.out / RUN) != before.run:
            raise LvdError(
                f"{before.name} was changed by another process meanwhile: call this again"
            )
        known = read_optional(before.out / FILES)
        shards = sorted((before.out / "shards").glob("*")) if before.written else []
        for path in filter(Path.exists, [before.out / "reports" / REMOVED, *shards]):
            name = path.relative_to(before.out).as_posix()
            link_or_copy(path, self.partial / name)
            if name in known:
                self._kept[name] = known[name]

    def write(
        self, run: dict[str, Any], funnel: dict[str, Any], address: str, used: list[str]
    ) -> None:
        """Write `reports/funnel.json`, `run.json`, and what of WORK the result is made of."""
        write_json(self.partial / USED, {"used": sorted(used)}, self.scratch)
        write_json(self.reports / "funnel.json", funnel, self.scratch)
        write_json(self.partial / RUN, {"format": FORMAT, "address": address, **run}, self.scratch)

    def finish(self, stages: list[Any], seconds: float) -> None:
        """Write the timings, drop what was only for building, and move the folder to its place."""
        timings = {"stages": [asdict(stage) for stage in stages], "seconds": seconds}
        write_json(self.partial / TIMINGS, timings, self.scratch)
        if (self.reports / "index.html").exists():
            write_timings_page(self.partial)
        self.publish(self._kept)

    def publish(self, known: Mapping[str, FileHash] = MappingProxyType({})) -> None:
        """Hash the files of the partial folder that are not `known`, and move it to its place."""
        hashes = file_hashes(self.partial, known)
        write_json(self.partial / FILES, hashes, self.scratch)
        for name in (".scratch", ".spill", ".tables"):
            shutil.rmtree(self.partial / name, ignore_errors=True)
        (self.partial / ADDRESS).unlink()
        sync_tree(self.partial)
        if self.out.exists():
            self.out.rename(self._old)
        self.partial.rename(self.out)
        shutil.rmtree(self._old, ignore_errors=True)


def file_hashes(
    out: Path, known: Mapping[str, FileHash] = MappingProxyType({})
) -> dict[str, FileHash]:
    """Return size and sha256 of every file of a result but `TIMED` and this list.

    What `known` says of a file is taken from there.
    """
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {
        name: known.get(name) or {"bytes": path.stat().st_size, "sha256": digest_file(path)}
        for name, path in sorted(files.items())
        if name not in (FILES, *TIMED) and not name.startswith(".")
    }


def note_hashes(out: Path, names: Iterable[str]) -> None:
    """Let `files.json` of a result, if it has one, say what these files hold now."""
    if (out / FILES).exists():
        now = {
            name: {"bytes": (out / name).stat().st_size, "sha256": digest_file(out / name)}
            for name in names
            if name not in TIMED
        }
        write_json(out / FILES, read_json(out / FILES) | now)


def finish_swap(out: Path) -> None:
    """Finish a swap of `out` that was cut off between its two renames."""
    output = Output(out, {}, replace=True)
    if not out.exists() and output.partial.exists():
        with output.locked():
            pass


def lock_file(out: Path) -> Path:
    """Return the file whose lock is held by whoever builds `out`."""
    return out.with_name(f".{out.name}.lock")


def name_latest(out: Path) -> None:
    """Let `runs/curate/latest` name the newest complete run, where links can be made."""
    latest = Path("runs") / "curate" / "latest"
    beside = latest.with_name(f".latest.{os.getpid()}")
    try:
        latest.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        beside.symlink_to(os.path.relpath(out.absolute(), latest.parent.absolute()))
        beside.replace(latest)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        warn(f"{latest} does not name this run: {error.strerror}")


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide the bytes of the output."""
    names = sorted([installed_faiss(), *LIBRARIES])
    return {name: _version(name) for name in names}


@cache  # all that is known of a library is parsed for it
def _version(name: str) -> str:
    return importlib.metadata.version(name)
