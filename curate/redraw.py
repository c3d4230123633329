"""Draws the pictures of a finished run again, from what it says of its datasets."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from curate.catalogue.collection import Collection
from curate.catalogue.originals import Originals
from curate.execution.output import RUN
from curate.plan import parts_of
from curate.report.pictures import pictures
from curate.report.stage import read_by_key
from curate.report.thumbnails import ReadImage
from curate.request import Named
from shared.datasets.dataset import DatasetSettings
from shared.errors import LvdError
from shared.progress import warn
from shared.storage.files import read_json
from shared.storage.locks import scratch_folder


def picture_files(out: Path) -> list[str]:
    """Return the names of the page of a result and of the pictures beside it; none if none is drawn."""
    if not (out / "reports" / "index.html").exists():
        return []
    drawn = (path for path in (out / "reports").iterdir() if path.suffix in (".png", ".html"))
    return [f"reports/{path.name}" for path in drawn]


def redraw(out: Path, work: Path) -> None:
    """Write the page of `out` and its further pages anew.

    Without the crawl, the seed or `work`, a warning says which images are missing from them.
    """
    path = out / RUN
    if not path.exists():
        raise LvdError(f"no run in {out}: name the --out of one")
    readers: dict[str, dict[str, ReadImage]] = {"crawl": {}, "seed": {}}
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(work / "scratch"))
        for name, about in read_json(path)["datasets"].items():
            role = name.partition(" ")[0]
            if role in readers and (read := open_originals(stack, name, about, work, scratch)):
                readers[role][about["name"]] = read
        [read_crawl] = readers["crawl"].values() or [lambda key: None]
        pictures(out, read_crawl, readers["seed"])


def open_originals(
    stack: ExitStack, name: str, about: Mapping[str, Any], work: Path, scratch: Path
) -> ReadImage | None:
    """Return what reads the images of a dataset of `run.json`, where it is called `name`.

    None of one that is text, and, with a warning, of one that is not there.
    """
    try:
        return read_originals(stack, about, work, scratch)
    except FileNotFoundError as error:
        where = f"{error.filename or error} is not there (--work names the work folder of the run)"
        warn(f"drawn without the images of the {name} that were not kept: {where}")
        return None
    except (LvdError, OSError, KeyError) as error:
        warn(f"drawn without the images of the {name} that were not kept: {error}")
        return None


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
