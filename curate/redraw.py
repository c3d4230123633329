"""Draws the pictures of a finished run again, from what it says of its datasets."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from curate.catalogue.collection import Collection
from curate.catalogue.originals import Originals
from curate.execution.output import RUN
from curate.plan import parts_of
from curate.report.pictures import pictures
from curate.report.stage import read_by_key
from curate.report.thumbnails import ReadImage
from curate.report.timings import TIMINGS, write_timings_page
from curate.request import Named
from shared.datasets.dataset import DatasetSettings
from shared.errors import LvdError
from shared.progress import warn
from shared.storage.files import read_json
from shared.storage.locks import scratch_folder

UNREADABLE = (LvdError, OSError, KeyError)
"""What `read_originals` raises where a dataset is not there."""


def picture_files(out: Path) -> list[str]:
    """Return the names of the page of a result and of the pictures beside it; none if none is drawn."""
    if not (out / "reports" / "index.html").exists():
        return []
    drawn = (path for path in (out / "reports").iterdir() if path.suffix in (".png", ".html"))
    return [f"reports/{path.name}" for path in drawn]


def redraw(out: Path, work: Path, *, keep: bool = False) -> None:
    """Write the page of `out` and its further pages anew.

    Without the crawl, the seed or `work`, a warning says which images are missing from them; with
    `keep`, a page that is there then stays as it is.
    """
    path = out / RUN
    if not path.exists():
        raise LvdError(f"no run in {out}: name the --out of one")
    page = out / "reports" / "index.html"
    readers: dict[str, dict[str, ReadImage]] = {"crawl": {}, "seed": {}}
    with ExitStack() as stack:
        parent = Path(stack.enter_context(TemporaryDirectory())) if not work.exists() else work
        scratch = stack.enter_context(scratch_folder(parent / "scratch"))
        for name, about in read_json(path)["datasets"].items():
            role = name.partition(" ")[0]
            if role not in readers:
                continue
            try:
                read = read_originals(stack, about, work, scratch)
            except UNREADABLE as error:
                if keep and page.exists():
                    warn(
                        f"{page} stays as it is: the images of the {name} cannot be read: "
                        f"{why_unreadable(error)}; remove the page to have it drawn without them"
                    )
                    return
                warn_without(name, error)
                continue
            if read is not None:
                readers[role][about["name"]] = read
        [read_crawl] = readers["crawl"].values() or [lambda key: None]
        timed = (out / TIMINGS).exists()
        pictures(out, read_crawl, readers["seed"], timed=timed)
        if timed:
            write_timings_page(out)


def open_originals(
    stack: ExitStack, name: str, about: Mapping[str, Any], work: Path, scratch: Path
) -> ReadImage | None:
    """Return what reads the images of a dataset of `run.json`, where it is called `name`.

    None of one that is text, and, with a warning, of one that is not there.
    """
    try:
        return read_originals(stack, about, work, scratch)
    except UNREADABLE as error:
        warn_without(name, error)
        return None


def warn_without(name: str, error: Exception) -> None:
    """Warn that pictures are drawn without the images of a dataset."""
    why = why_unreadable(error)
    warn(f"drawn without the images of the {name} that were not kept: {why}")


def why_unreadable(error: Exception) -> str:
    """Return why `read_originals` failed, with a remedy where a file is missing."""
    if isinstance(error, FileNotFoundError):
        return f"{error.filename or error} is not there (--work names the work folder of the run)"
    return str(error)


def read_originals(
    stack: ExitStack, about: Mapping[str, Any], work: Path, scratch: Path
) -> ReadImage | None:
    """Return what reads the images of a dataset of `run.json`; None of one that is text.

    Raises LvdError, OSError or KeyError where it is not there.
    """
    collection = Collection(work / "catalogue" / about["content"] / "all")
    named = Named(about["name"], DatasetSettings(**about["settings"]))
    if named.settings.text:
        return None
    there = {part.name: part for part in parts_of(named, work)}
    parts = [there[part.name] for part in collection.parts]
    originals = stack.enter_context(Originals(collection, parts, scratch))
    read = read_by_key(originals, collection)
    read("")
    return read
