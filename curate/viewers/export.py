"""Exports the images of a finished run, with what became of each, for other tools to show."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

from curate.redraw import read_originals
from curate.report.tables import read_funnel
from curate.search.stored import open_stored
from curate.viewers.csv_table import write_csv
from curate.viewers.fiftyone import write_fiftyone
from curate.viewers.images import Row, choose, vectors_of, written_images
from curate.viewers.lightly import write_lightly
from shared.errors import LvdError
from shared.storage.files import read_json, reraise_disk_full
from shared.storage.locks import scratch_folder
from shared.storage.places import check_writable, parent_of

Format = Literal["fiftyone", "lightly", "csv"]
Vectors = Callable[[list[Row]], Float32[np.ndarray, "n d"]] | None


def export(
    out: Path,
    folder: Path,
    kind: Format,
    work: Path,
    decisions: Sequence[str],
    limit: int,
    vectors: bool,
) -> list[str]:
    """Write images of the result `out` to `folder`, which becomes whole at the end; return what to say.

    Raises LvdError, in one line, where `folder` holds something already, where `out` is no finished
    run, where `work` does not hold what it left, and where no image can be read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LvdError(f"--to {folder} holds something already: name another folder, or remove it")
    check_writable(folder, "--to")
    read_funnel(out)
    run = read_json(out / "run.json")
    given: Vectors = partial(vectors_of, open_stored(out, work, "retrieve")) if vectors else None
    [about] = [about for name, about in run["datasets"].items() if name.startswith("crawl")]
    written = 0

    def counted(blocks: Iterator[list[Row]]) -> Iterator[list[Row]]:
        nonlocal written
        for rows in blocks:
            written += len(rows)
            yield rows

    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(work / "scratch"))
        try:
            read = read_originals(stack, about, work, scratch)
        except (OSError, KeyError) as error:
            raise LvdError(
                f"--work {work} does not know where the images of {out} are ({error}): name the --work "
                "of its run, and see that the crawl lies where it did"
            ) from error
        assert read is not None  # a crawl is never text
        total, blocks = choose(out, decisions, limit)
        beside = stack.enter_context(_built(folder))
        images = counted(written_images(blocks, beside, read))
        if kind == "fiftyone":
            write_fiftyone(beside, images, given)
        elif kind == "lightly":
            write_lightly(beside, images, given)
        else:
            write_csv(beside, images)
        if not written:
            raise LvdError(
                f"{out}: none of the {total:,} images of these decisions can be read: are the crawl "
                "and --decision right?"
            )
    lines = [f"{written:,} images in {folder}"]
    if total > limit:
        lines[0] += f", drawn at random from {total:,} (--limit says how many)"
    if gone := min(total, limit) - written:
        lines.append(f"{gone:,} more are left out: they cannot be read, or are other images by now")
    return [*lines, f"open it: {_opened(kind, folder)}"]


def _opened(kind: Format, folder: Path) -> str:
    place = json.dumps(str(folder.absolute()))
    return {
        "fiftyone": f"fiftyone.Dataset.from_dir({place}, fiftyone.types.FiftyOneDataset), "
        "where fiftyone is installed",
        "lightly": f"python {folder / 'studio.py'}, where lightly-studio is installed",
        "csv": f"{folder / 'images.csv'}, whose column path says where the pictures are",
    }[kind]


@contextmanager
def _built(folder: Path) -> Iterator[Path]:
    """Yield a folder that becomes `folder` at the end, if all went well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        reraise_disk_full(parent_of(folder)),
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as around,
    ):
        beside = Path(around) / folder.name
        beside.mkdir()
        yield beside
        beside.rename(folder)
