"""The registry of retrieval strategies, and the one question that all of them answer."""

from __future__ import annotations

from collections.abc import Callable

from curate.retrieval import cluster, knn, nothing, threshold
from curate.retrieval.question import Chosen, Question
from curate.retrieval.settings import StrategySettings

STRATEGIES: dict[str, Callable[[Question, StrategySettings], Chosen]] = {
    "threshold": lambda question, settings: threshold.choose(question, settings.target),
    "knn": lambda question, settings: knn.choose(question, settings.knn),
    "cluster": lambda question, settings: cluster.choose(question, settings.cluster),
    "none": lambda question, settings: nothing.choose(question),
}


def choose(question: Question, settings: StrategySettings) -> Chosen:
    """Return what the strategy of a seed retrieves for it; `auto` is resolved before."""
    return STRATEGIES[settings.strategy](question, settings)
