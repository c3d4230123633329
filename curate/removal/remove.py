"""Takes the images of a list out of a finished result, and out of the work folder it was made in.

First the result, which is swapped whole, and its copies; then the work folder, unit by unit.
`removed.parquet` of the result says what is to be gone, so that the same call finishes what was cut
off.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from curate.execution.copies import copy_result
from curate.execution.gc import refuse_while_at_work
from curate.execution.output import RUN, Output
from curate.export.selection_list import list_files
from curate.filters.lists import ListSettings, compile_lists
from curate.removal.gone import Gone, find_gone, find_near, read_removed
from curate.removal.result import rewrite
from curate.removal.work import drop, units_with
from shared.datasets.outputs import WORK_MARKER
from shared.errors import LvdError
from shared.progress import size
from shared.storage.files import read_json
from shared.storage.locks import scratch_folder


def remove(
    out: Path,
    name: str,
    settings: ListSettings,
    work: Path | None,
    *,
    near: bool = False,
    dry_run: bool,
) -> Iterator[str]:
    """Take the images that a list names out of `out` and `work`; yield lines that say which.

    With `near` their near copies by PDQ go too, and those that come later stay out.

    Raises LvdError, and changes nothing, where the list is wrong, `out` is no finished result,
    `work` no work folder, or a run is at work on either.
    """
    output = Output(out, {}, replace=True)
    if not out.exists() and not output.partial.exists():
        raise LvdError(f"{out} is not there: name the --out of a finished run")
    if work is not None and not (work / WORK_MARKER).exists():
        raise LvdError(
            f"--work {work} is no work folder of this version: name the one of the run, or say "
            "--no-work where it is gone"
        )
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        [compiled] = compile_lists({name: settings}, temporary, temporary)
        stack.enter_context(output.locked())
        if not (out / RUN).exists():
            raise LvdError(f"{out} is no finished run: name the --out of one")
        scratch = None
        if work is not None:
            scratch = stack.enter_context(scratch_folder(work / "scratch"))
            refuse_while_at_work(work, scratch)
        gone = find_gone(out, compiled)
        if near:
            gone = find_near(out, gone, temporary)
        yield from (f"{each.key}  {each.was}  {each.reason}" for each in gone)
        if gone and not dry_run:
            source = {"name": name, "content": compiled.content, **settings.model_dump()}
            rewrite(output, gone, source, work)
        yield _said_of_result(out, gone, dry_run)
        for place in [] if dry_run else read_json(out / RUN).get("copies", []):
            yield f"{copy_result(out, place):,} files were copied anew to {place}"
        if work is not None and scratch is not None:
            hashes = [*(each.sha256 for each in gone), *read_removed(out)["sha256"].to_pylist()]
            units = units_with(work, filter(None, hashes))
            nbytes = sum(path.stat().st_size for unit in units for path in unit.iterdir())
            if not dry_run:
                drop(units, scratch)
            verb = "would be" if dry_run else "were"
            yield (
                f"{len(units):,} units of {size(nbytes)} that hold a vector or small picture of what "
                f"is out {verb} removed from {work}: a run that needs them makes them again"
            )


def _said_of_result(out: Path, gone: list[Gone], dry_run: bool) -> str:
    verb = "would be" if dry_run else "were"
    shards = {each.shard for each in gone} - {None}
    where = "" if list_files(out) else f" in {len(shards):,} shards,"
    return (
        f"{len(gone):,} images, {sum(each.was == 'kept' for each in gone):,} of them kept,{where} "
        f"{verb} taken out of {out}"
    )
