"""Runs a command and says how much memory it and the processes it started held at most."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SECONDS = 2.0  # between two looks, each of which costs the processes some milliseconds


@dataclass(frozen=True)
class Finished:
    """What a command printed, and its memory in MiB."""

    stdout: str
    process: float
    """Most resident memory of the process itself."""
    others: float
    """Most proportional memory of its descendants together: what they share counts once."""


def run_measured(command: list[str], environment: Mapping[str, str]) -> Finished:
    """Run a command to its end. Raises RuntimeError with the end of what it said if it failed."""
    process_peak = others_peak = 0.0
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)
        while process.poll() is None:
            process_peak = max(process_peak, mebibytes(process.pid, "status", "VmHWM"))
            others = sum(mebibytes(pid, "smaps_rollup", "Pss") for pid in descendants(process.pid))
            others_peak = max(others_peak, others)
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                continue
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{stderr.read()[-2000:]}")
        return Finished(stdout.read(), process_peak, others_peak)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have."""
    children: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, listing.read_text().split())
        except OSError:  # the thread has ended
            continue
    return children + [below for child in children for below in descendants(child)]


def mebibytes(pid: int, file: str, field: str) -> float:
    """Return what `/proc` says of a process's memory in MiB; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
    except OSError:  # the process has ended
        return 0.0
    found = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0
