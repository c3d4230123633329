"""Tells what lvd-curate wrote from a dataset's own files: a run's outputs are never its input."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.datasets.listing import Place, absolute
from shared.storage.remote import is_remote

RESULT_MARKER, WORK_MARKER = "run.json", "lvd-work.json"
"""Files of a result's folder (beside `reports/` and `shards/`) and of a work folder."""
LIST = "selection.parquet"
"""What the selection list of a result is called: one file, or a folder of files."""


def without_outputs(place: Place, exclude: Sequence[str | Path]) -> tuple[Place, list[str]]:
    """Return a place without the folders below it that lvd-curate wrote, and these."""
    paths = sorted(place.around)

    def holds(folder: str) -> bool:
        at = bisect_left(paths, folder)
        return at < len(paths) and paths[at].startswith(folder)

    def with_file(name: str) -> set[str]:
        ends = (path for path in paths if path == name or path.endswith(f"/{name}"))
        return {path[: -len(name)] for path in ends}

    results = {r for r in with_file(RESULT_MARKER) if holds(f"{r}reports/") or holds(f"{r}shards/")}
    outputs = {*results, *with_file(WORK_MARKER), *_below(place.root, exclude)} - {""}
    if not outputs and "" not in results:
        return place, []
    left_out: dict[str, None] = {}

    def is_input(path: str) -> bool:
        above = (path[: at + 1] for at, letter in enumerate(path) if letter == "/")
        output = next((folder for folder in above if folder in outputs), None)
        if output is not None:
            left_out[output] = None
        is_result = path.startswith("shards/") or is_listed(path)
        return output is None and ("" not in results or is_result)

    files = [file for file in place.files if is_input(file.path)]
    around = {path: file for path, file in place.around.items() if is_input(path)}
    return Place(place.root, files, around), list(left_out)


def _below(root: str, folders: Sequence[str | Path]) -> Iterator[str]:
    """Yield those of the folders that lie below the root, relative to it, with a slash behind."""
    for folder in map(absolute, map(str, folders)):
        pairs = [(root, folder)]
        if not is_remote(root) and not is_remote(folder):
            pairs.append((str(Path(root).resolve()), str(Path(folder).resolve())))
        for above, below in pairs:
            if below.startswith(above.rstrip("/") + "/"):
                yield below[len(above.rstrip("/")) + 1 :] + "/"


def is_listed(path: str) -> bool:
    """Tell whether a path below the root of a dataset is a file of its selection list."""
    return f"{path}/".startswith(f"{LIST}/")
