"""What is odd about a selection, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

FEW = 20
"""Images of fewer than which no share is odd."""
NEARLY_ALL, NEARLY_NONE = 0.95, 0.01


def selection_problems(
    decisions: Mapping[str, int], threshold: float, target: int | None
) -> list[str]:
    """Return a line where a target was not met, or nearly all or none of the images are relevant.

    `decisions` are counts. A share is of the images that could be relevant: those that nothing else
    dropped. A threshold of -1 asks for all of them.
    """
    relevant = decisions["kept"] + decisions["over_budget"]
    judged = relevant + decisions["irrelevant"]
    if target is not None:
        if relevant == target:
            return []
        return [
            f"retrieve.target asks for {target:,} images, and {judged:,} could be relevant: all of "
            "them are; lower the target, or crawl more"
        ]
    if judged < FEW or threshold <= -1:
        return []
    if relevant > NEARLY_ALL * judged:
        word, way = "nearly all", "higher"
    elif relevant < NEARLY_NONE * judged:
        word, way = "nearly no", "lower"
    else:
        return []
    return [
        f"retrieve finds {word} images relevant ({relevant:,} of {judged:,} that could be): say "
        f"--set retrieve.threshold=... with something {way} than {threshold:.4g}, "
        "--set retrieve.target=... for so many images, or another retrieve.embedder"
    ]
