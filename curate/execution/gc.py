"""Removes from a work folder what none of the given results is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from curate.catalogue.content import stale_notes
from curate.execution.output import RUN, USED
from curate.execution.status import runs_at_work
from curate.execution.verify import STAGES
from shared.datasets.outputs import WORK_MARKER
from shared.errors import LvdError
from shared.progress import size
from shared.storage.commits import discard
from shared.storage.files import read_json
from shared.storage.locks import holder, scratch_folder


def collect(work: Path, keep: Iterable[Path], *, dry_run: bool) -> Iterator[str]:
    """Remove the stages and units of `work` that no result in `keep` uses; yield lines to say.

    Raises LvdError where one of them is no finished result, or a run is at work.
    """
    if not (work / WORK_MARKER).exists():
        raise LvdError(f"--work {work} is no work folder of this version: name one")
    used: set[str] = set()
    for out in keep:
        if not (out / RUN).exists() or not (out / USED).exists():
            raise LvdError(f"{out} is no finished run of this version: name the --out of one")
        used.update(read_json(out / USED)["used"])
    with scratch_folder(work / "scratch") as scratch:
        refuse_while_at_work(work, scratch)
        yield from _collect(work, used, scratch, dry_run)


def refuse_while_at_work(work: Path, scratch: Path) -> None:
    """Raise LvdError where a run is at work on `work`; `scratch` is this process's own."""
    locks = [path for path in scratch.parent.glob("*.lock") if path.stem != scratch.name]
    if any(map(holder, locks)) or runs_at_work(work):
        raise LvdError(f"a run is at work on {work}: wait for it, and run the same command again")


def _collect(work: Path, used: set[str], scratch: Path, dry_run: bool) -> Iterator[str]:
    unused = [unit for unit in _units(work) if not _is_used(work, unit, used)]
    freed = sum(_bytes(unit) for unit in unused)
    yield from (f"{unit.relative_to(work)}  {size(_bytes(unit))}" for unit in unused)
    if not dry_run:
        for unit in unused:
            discard(unit, scratch)
        for note in stale_notes(work, {name.rpartition("/")[2] for name in used}):
            note.unlink(missing_ok=True)
        for stage in STAGES:
            for folder in (work / stage).glob("*"):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
    verb = "would be" if dry_run else "were"
    yield f"{len(unused):,} units of {size(freed)} {verb} removed from {work}"


def _units(work: Path) -> list[Path]:
    return [unit for stage in STAGES for unit in sorted((work / stage).glob("*/*"))]


def _is_used(work: Path, unit: Path, used: set[str]) -> bool:
    own = unit.relative_to(work).as_posix()
    return own in used or own.rpartition("/")[0] in used


def _bytes(unit: Path) -> int:
    return sum(path.stat().st_size for path in unit.rglob("*") if path.is_file())
