"""The files of finished runs, as runs on equal input are compared by them."""

from pathlib import Path

from curate.report.timings import TIMED


def content(out: Path) -> dict[str, bytes]:
    """Return the content of every file of a result but those in which equal runs differ."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return untimed({name: path.read_bytes() for name, path in files.items()})


def untimed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return files of a result but those in which equal runs differ."""
    return {name: data for name, data in files.items() if name not in TIMED}
