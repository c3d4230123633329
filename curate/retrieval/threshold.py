"""Strategy `threshold`: whatever is similar enough to at least one seed image, or the most similar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int8

from curate.retrieval.candidates import load_candidates, load_exported
from curate.retrieval.question import Chosen, Question, below
from curate.stage import Stage, Unit

VERSION = 2
BELOW, TIED = 1, 2


def choose(question: Question, target: float | None) -> Chosen:
    """Return the images that reach the threshold, or those that a target asks for."""
    runner, candidates = question.runner, question.candidates
    stage = Stage(
        "choose", ["threshold", VERSION], candidates.address, [question.threshold, target]
    )
    args = (candidates.folder, question.threshold, target)
    [found] = runner.run(stage, choose_relevant, [Unit("all", args)])
    folder = runner.folder(stage) / "all"
    return Chosen(folder, misses_of(**found), stage.address, **found)


def misses_of(threshold: float, target: int | None) -> tuple[str, ...]:
    """Return what is said of images that are `BELOW` or `TIED`."""
    if target is None:
        return (below(threshold),)
    goal = f"the target of {target:,} images"
    return (
        f"{below(threshold)}, to which {goal} came",
        f" is that of the last of {goal}, whose key comes first",
    )


def choose_relevant(
    candidates: Path, threshold: float, target: float | None, *, out: Path
) -> dict[str, Any]:
    """Write `missed.npy`. A share is rounded, and of one image at least.

    Where a run adds to a result, what that holds counts towards the target.
    """
    similarity = load_candidates(candidates)[1][:]
    if isinstance(target, float):
        target = max(1, round(target * len(similarity)))
    if target is None:
        missed = below_threshold(similarity, threshold)
    else:
        missed, threshold = beyond_target(similarity, load_exported(candidates), int(target))
    np.save(out / "missed.npy", missed)
    return {"threshold": threshold, "target": target}


def below_threshold(
    similarity: Float32[np.ndarray, " n"], threshold: float
) -> Int8[np.ndarray, " n"]:
    """Return 0 where a similarity reaches the threshold, which is inclusive, else `BELOW`."""
    return np.where(similarity >= np.float32(threshold), 0, BELOW).astype(np.int8)


def beyond_target(
    similarity: Float32[np.ndarray, " n"], first: Bool[np.ndarray, " n"], count: int
) -> tuple[Int8[np.ndarray, " n"], float]:
    """Return 0 for the `count` most similar, ties by row, else `BELOW` or `TIED`, and the threshold.

    Those that come `first` are among them before any other. The threshold is the least similarity
    of the others, or just above all that are left where there is no room for one.
    """
    ranked = np.lexsort((-similarity, ~first))
    others = ranked[int(first.sum()) :]
    taken = others[: max(0, count - int(first.sum()))]
    missed = np.full(len(similarity), BELOW, np.int8)
    missed[ranked[:count]] = 0
    if len(taken):
        threshold = float(similarity[taken[-1]])
    elif len(others):
        threshold = float(np.nextafter(similarity[others[0]], np.float32(2)))
    else:
        threshold = float(similarity.min()) if len(similarity) else -1.0
    missed[(missed != 0) & (similarity >= np.float32(threshold))] = TIED
    return missed, threshold
