"""Tells whose a folder is: a result or a work folder of `lvd-curate`, or a run of `lvd-train`."""

from __future__ import annotations

from pathlib import Path

from shared.datasets.outputs import RESULT_MARKER, WORK_MARKER
from shared.storage.files import read_optional


def describe_folder(folder: Path) -> str:
    """Return what a folder is and the command that speaks of it, as the end of a sentence, or ""."""
    if (folder / WORK_MARKER).exists():
        return f"a work folder of lvd-curate: see `lvd-curate status {folder}`"
    run = read_optional(folder / RESULT_MARKER)
    if "recipe" in run:
        return f"a run of lvd-train: see `lvd-train status {folder}`"
    if "settings" in run or (folder / "reports" / "funnel.json").exists():
        return f"a result of lvd-curate: see `lvd-curate status {folder}`"
    return ""
