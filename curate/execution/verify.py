"""Compares the files of a result or a work folder with the hashes that were taken of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curate.embedding.request import LENT
from curate.execution.output import FILES, RUN
from curate.filters.looks import LOOKS
from curate.report.timings import TIMED
from shared.datasets.outputs import WORK_MARKER
from shared.errors import LvdError
from shared.storage.commits import MANIFEST, discard, read_manifest
from shared.storage.files import digest_file, read_json
from shared.storage.locks import scratch_folder

STAGES = (
    *("lists", "digests", "repeats", *(f"{LENT}{kind}" for kind in ("facts", *LOOKS, "vectors"))),
    *("facts", "scores", *LOOKS, "vectors"),
    *("text", "head", "predict", "catalogue", "hash"),
    *(
        "calibrate",
        "include",
        "cluster",
        "dedup",
        "estimate",
        "holdout",
        "overlap",
        "retrieve",
        "choose",
        "balance",
        "top_up",
        "select",
        "audit",
    ),
)
"""The folders of a WORK whose grandchildren are units."""


def verify(folder: Path, *, discard: bool = False) -> tuple[int, list[str]]:
    """Return how many files were looked at, and a line for each problem with its remedy.

    With `discard`, damaged units of a work folder are removed. LvdError where `folder` is neither a
    finished result nor a work folder.
    """
    if (folder / WORK_MARKER).exists():
        return _verify_work(folder, discard)
    if not (folder / RUN).exists():
        raise LvdError(
            f"{folder} is neither the --out of a finished run nor a --work: name one of them"
        )
    if discard:
        raise LvdError(f"--discard is for a --work: run {folder} again with --replace instead")
    if not (folder / FILES).exists():
        raise LvdError(f"{folder} has no {FILES}: run it again with --replace to have one")
    return _verify_result(folder)


def _verify_result(out: Path) -> tuple[int, list[str]]:
    remedy = "run its command again with --replace"
    try:
        listed: dict[str, dict[str, Any]] = read_json(out / FILES)
    except ValueError:
        return 1, [f"{out / FILES}: damaged: {remedy}"]
    problems = [f"{out / name}: {wrong}: {remedy}" for name, wrong in _compare(out, listed)]
    return len(listed), problems


def _verify_work(work: Path, remove: bool) -> tuple[int, list[str]]:
    checked, problems, damaged = 0, [], []
    remedy = "removed, the next run makes it again" if remove else "say --discard"
    for stage in STAGES:
        for unit in sorted((work / stage).glob("*/*")):
            try:
                manifest = read_manifest(unit)
            except LvdError:
                wrong = [(MANIFEST, "damaged")]
            else:
                if manifest is None:
                    wrong = [("", f"foreign: it has no {MANIFEST} of this version")]
                else:
                    checked += 1 + len(manifest["files"])
                    wrong = list(_compare(unit, manifest["files"], MANIFEST))
            problems += [f"{unit / name}: {what}: {remedy}" for name, what in wrong]
            damaged += [unit] if wrong else []
    if remove and damaged:
        with scratch_folder(work / "scratch") as scratch:
            for unit in damaged:
                discard(unit, scratch)
    return checked, problems


def _compare(
    folder: Path, listed: dict[str, dict[str, Any]], *own: str
) -> Iterator[tuple[str, str]]:
    """Yield the name of each file below `folder` that is not as listed, and what is wrong."""
    there = {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }
    for name, entry in sorted(listed.items()):
        path = there.pop(name, None)
        if path is None:
            yield name, "missing"
        elif path.stat().st_size != entry["bytes"]:
            yield name, f"{path.stat().st_size:,} bytes, not {entry['bytes']:,}"
        elif digest_file(path) != entry["sha256"]:
            yield name, "its content has changed"
    for name in sorted(set(there) - {*own, FILES, *TIMED}):
        yield name, "foreign"
