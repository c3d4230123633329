"""Trains one arm and scores it, by the project's own commands; a training that was cut off goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from benchmarks.proof.pool import LABELLED, TAIL, TEST

IN_PROCESS = "LVD_PROOF_IN_PROCESS"
K = 20


class FailedError(Exception):
    """Raised where a command of the project ends otherwise than with 0; its text says which."""


@dataclass(frozen=True)
class Length:
    """How long arms are trained."""

    name: str
    """`equal steps` or `equal epochs`."""
    value: int

    def steps(self, images: int, batch: int) -> int:
        """Return the optimiser steps of a training on so many images."""
        if self.name == "equal steps":
            return self.value
        return max(1, round(self.value * images / batch))


def train(shards: Path, out: Path, steps: int, seed: int, settings: Sequence[str]) -> None:
    """Train the recipe `proof` on an arm's shards; an unfinished training goes on."""
    asked = [f"steps={steps}", f"seed={seed}", *settings]
    sets = [word for text in asked for word in ("--set", text)]
    command("lvd-train", "run", "--recipe", "proof", "--shards", shards, "--out", out, *sets)


def scores(model: Path, data: Path, out: Path) -> dict[str, float]:
    """Return top-1 on the wanted classes, and on the rarer half of them, by k-NN and by a linear
    classifier, both of which know labelled pictures of all wanted classes."""
    found = {}
    for suffix, test in (("", TEST), ("_tail", TAIL)):
        command(
            *("lvd-train", "eval", "knn", "logreg", "--model", model, "--train", data / LABELLED),
            *("--test", data / test, "--out", out, "--cache", out / "features"),
            *("--set", f"knn.k=[{K}]"),
        )
        figures = json.loads((out / "table.json").read_text())["figures"]
        by_task = {figure["task"]: figure["value"] for figure in figures}
        found |= {f"knn{suffix}": by_task["knn"], f"linear{suffix}": by_task["logreg"]}
    shutil.rmtree(out)
    return found


def command(name: str, *arguments: object) -> None:
    """Run a command of the project, its output on stderr; raise FailedError where it fails.

    In a process of its own; in this one where `IN_PROCESS` is set, which spares its start.
    """
    words = list(map(str, arguments))
    if os.environ.get(IN_PROCESS):
        status = _call(name, words)
    else:
        program = str(Path(sys.executable).parent / name)
        status = subprocess.run([program, *words], stdout=sys.stderr, check=False).returncode
    if status:
        raise FailedError(f"{name} {' '.join(words)} ended with {status}")


def _call(name: str, words: list[str]) -> int:
    from curate.cli import main as curate
    from train.cli import main as train

    with redirect_stdout(sys.stderr):
        try:
            {"lvd-curate": curate, "lvd-train": train}[name](words, prog_name=name)
        except SystemExit as end:
            return int(end.code or 0)
    return 0
