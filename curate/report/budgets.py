"""Says of an image that is over budget, which budget that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int8, Int32

from curate.retrieval.answers import Answers
from curate.selection.top_up import TopUp
from curate.selection.wishes import OVER_BUDGET
from curate.written_cosine import rounded_down


def why_over_budget(
    answers: Answers,
    missed: Int8[np.ndarray, "seeds n"],
    similarity: Float32[np.ndarray, " n"],
    cluster: Int32[np.ndarray, " n"],
    max_images: int | None,
    balanced: Path | None,
    left: Bool[np.ndarray, " n"],
    topped_up: TopUp | None,
) -> Callable[[int], str]:
    """Return what says of a row which budget has no room for it.

    `missed` is why each seed does not want an image, `similarity` its cosine with the nearest one,
    `cluster` the lowest cluster that it is balanced in, or -1, and `balanced` where their counts are;
    `left` is what `topped_up` has left.
    """
    counts = None if balanced is None else pq.read_table(balanced / "balance.parquet")

    def say(row: int) -> str:
        if counts is not None and cluster[row] >= 0:
            images, kept = (counts[name][int(cluster[row])].as_py() for name in ("images", "kept"))
            return (
                f"balance takes {kept:,} of the {images:,} images of its cluster {cluster[row]}, "
                "and not this one"
            )
        if topped_up is not None and left[row]:
            told = topped_up.told
            return (
                f"top_up takes {told['kept']:,} of {told['retrieved']:,} images, each no more similar to "
                "what was held or taken before it than this one"
            )
        best = f"not among the {max_images} most similar"
        if not (missed[:, row] == 0).any():
            budgets = [
                f"the {each.settings.max_images} most similar to {each.name}"
                for each, code in zip(answers.wanted, missed[:, row], strict=True)
                if code == OVER_BUDGET
            ]
            best = f"not among {', nor '.join(budgets)}"
        return f"cosine {rounded_down(similarity[row])} with its nearest seed is {best}"

    return say
