"""What a strategy is asked for one seed, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curate.catalogue.collection import Catalogued
from curate.neighbours.cluster import ClusterSettings
from curate.retrieval.candidates import Candidates
from curate.stage import Runner
from curate.written_cosine import rounded_up


@dataclass(frozen=True)
class Question:
    """One seed and the candidates of a crawl, both as the embedder for meaning sees them."""

    runner: Runner
    crawl: Catalogued
    seed: Catalogued
    candidates: Candidates
    threshold: float
    """The cosine from which an image is relevant, or the floor of the other strategies; -1: none."""
    clusters: ClusterSettings
    """How the pipeline cuts a crawl into clusters."""
    threads: int


@dataclass(frozen=True)
class Chosen:
    """What a strategy retrieves, as it left it in `folder`.

    `missed.npy` int8 holds of each candidate 0 where it is retrieved, else a code.
    """

    folder: Path
    misses: tuple[str, ...]
    """What each code says, from 1 on, behind `cosine ... with its nearest seed ...`."""
    address: str
    threshold: float | None = None
    """The one that a target came to."""
    target: int | None = None
    """How many images were to be relevant; None without a target."""


def below(threshold: float) -> str:
    """Return what is said of an image under the threshold or floor, code 1 of every strategy."""
    return f" is below {rounded_up(threshold)}"
