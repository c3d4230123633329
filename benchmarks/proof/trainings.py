"""Trains one arm and scores it, by the project's own commands; a training that was cut off goes on."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.proof.pool import LABELLED, TAIL, TEST

IN_PROCESS = "LVD_PROOF_IN_PROCESS"
K = 20


class FailedError(Exception):
    """Raised where a command of the project ends otherwise than with 0; its text says which."""


@dataclass(frozen=True)
class Length:
    """How long arms are trained."""

    name: str
    """As it stands in the table."""
    value: int
    passes: bool = False
    """Whether `value` counts passes over an arm's images, in place of steps."""

    def steps(self, images: int, batch: int) -> int:
        """Return the optimiser steps of a training on so many images."""
        return max(1, round(self.value * images / batch)) if self.passes else self.value


@dataclass(frozen=True)
class Training:
    """What is trained and scored, and where."""

    about: Mapping[str, Any]
    """What the table says of it beside its scores."""
    shards: Path
    data: Path
    """Holds the labelled pictures and those to be classified."""
    out: Path
    settings: tuple[str, ...]
    recipe: str = "proof"
    init: str | None = None
    """A model whose weights it starts from."""


def finish(training: Training) -> dict[str, Any]:
    """Train and score; return the row of the table. An unfinished training goes on."""
    sets = [word for text in training.settings for word in ("--set", text)]
    command(
        *("lvd-train", "run", "--recipe", training.recipe, "--shards", training.shards),
        *("--out", training.out, *sets, *(("--init", training.init) if training.init else ())),
    )
    found = scores(training.out / "model", training.data, training.out / "eval")
    shutil.rmtree(training.out / "checkpoints", ignore_errors=True)
    return {**training.about, **found}


def finish_beside(trainings: Sequence[Training], jobs: int) -> Iterator[dict[str, Any]]:
    """Finish `jobs` trainings at a time, and yield their rows as they end.

    Each has a process of its own, which begins with what it imports, and writes what it prints
    beside its OUT. A training that fails stops none of the others; what the first of them raised
    is raised at the end.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        ["torchvision", "timm", "train.loop", "train.evaluation.command"]
    )
    failed: list[Exception] = []
    with ProcessPoolExecutor(jobs, mp_context=processes, max_tasks_per_child=1) as pool:
        waiting = [pool.submit(_finish_alone, training) for training in trainings]
        for ended in as_completed(waiting):
            try:
                yield ended.result()
            except Exception as error:
                failed.append(error)
    if failed:
        raise failed[0]


def _finish_alone(training: Training) -> dict[str, Any]:
    training.out.parent.mkdir(parents=True, exist_ok=True)
    with training.out.with_suffix(".log").open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 2)
        os.environ[IN_PROCESS] = "1"
        return finish(training)


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
    package = {"lvd-curate": "curate.cli", "lvd-train": "train.cli"}[name]
    main = importlib.import_module(package).main
    with redirect_stdout(sys.stderr):
        try:
            main(words, prog_name=name)
        except SystemExit as end:
            return int(end.code or 0)
    return 0
