"""Strategy `none`: nothing is retrieved, as for a seed whose own images alone are wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from curate.retrieval.candidates import load_candidates
from curate.retrieval.question import Chosen, Question
from curate.stage import Stage, Unit

VERSION = 1


def choose(question: Question) -> Chosen:
    """Return no image."""
    runner, candidates = question.runner, question.candidates
    stage = Stage("choose", ["none", VERSION], candidates.address)
    runner.run(stage, miss_all, [Unit("all", (candidates.folder,))])
    return Chosen(runner.folder(stage) / "all", ("; that seed retrieves nothing",), stage.address)


def miss_all(candidates: Path, *, out: Path) -> dict[str, Any]:
    """Write `missed.npy`: code 1 for every candidate."""
    np.save(out / "missed.npy", np.ones(len(load_candidates(candidates)[0]), np.int8))
    return {}
