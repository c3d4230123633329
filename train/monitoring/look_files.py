"""Names the pictures that a run keeps of what its teacher sees; knows no torch."""

from __future__ import annotations

from pathlib import Path

FOLDER = "looks"
PICTURES = f"{FOLDER}/pictures.jpg"
"""The images themselves, side by side."""


def look_file(what: str, step: int) -> str:
    """Return the file below OUT with `what`, attention or patches, behind `step` steps."""
    return f"{FOLDER}/{what}-{step:07d}.jpg"


def kept_steps(out: Path, what: str) -> list[int]:
    """Return the steps behind which there is a picture of `what`, in order."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in out.glob(f"{FOLDER}/{what}-*.jpg"))
