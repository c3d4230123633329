"""What is odd about a selection, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

FEW = 20
"""Images of fewer than which no share is odd."""
NEARLY_ALL, NEARLY_NONE = 0.95, 0.01
REMEDIES_FOR_NONE = {
    "knn": "--set retrieve.threshold=null, as no image reaches that floor",
    "cluster": "--set retrieve.cluster.clusters=... with fewer of them, or a lower "
    "retrieve.cluster.more_than or retrieve.threshold",
}
REMEDIES_FOR_ALL = {
    "knn": "--set retrieve.knn.neighbours=... with something lower",
    "cluster": "--set retrieve.cluster.images=... or retrieve.cluster.cap=... with something lower",
}


def selection_problems(
    decisions: Mapping[str, int],
    threshold: float,
    target: int | None,
    strategy: str = "threshold",
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
    if strategy != "threshold":
        return _of_strategy(strategy, relevant, judged)
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


def _of_strategy(strategy: str, relevant: int, judged: int) -> list[str]:
    """Return a line where a strategy that takes what is nearest finds all, or nothing."""
    if judged and not relevant:
        word, remedies = "none", REMEDIES_FOR_NONE
    elif judged >= FEW and relevant > NEARLY_ALL * judged:
        word, remedies = "nearly all", REMEDIES_FOR_ALL
    else:
        return []
    return [
        f"retrieve.strategy {strategy} finds {word} of the images relevant ({relevant:,} of "
        f"{judged:,} that could be): say {remedies[strategy]}"
    ]
