"""What each seed of a run retrieves, by its own strategy; negative seeds bar what they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curate.calibration.thresholds import Threshold
from curate.catalogue.collection import Catalogued
from curate.dedup.chains import Dropped
from curate.dedup.holdout import Held
from curate.neighbours.cluster import ClusterSettings
from curate.retrieval.candidates import Candidates, find_candidates
from curate.retrieval.nearest_seeds import NearestSeeds, Retrieved
from curate.retrieval.question import Chosen, Question
from curate.retrieval.settings import SeedSettings
from curate.retrieval.strategies import choose
from curate.stage import Runner


@dataclass(frozen=True)
class Answer:
    """What one seed retrieves."""

    settings: SeedSettings
    """With the strategy that `auto` came to."""
    images: int
    """Readable images of the seed."""
    threshold: Threshold
    """With the value that a target came to."""
    retrieved: Retrieved
    candidates: Candidates
    chosen: Chosen

    @property
    def name(self) -> str:
        """The name of the seed."""
        return self.retrieved.name


@dataclass(frozen=True)
class Answers:
    """What the seeds retrieve, each kind in the order of their names."""

    wanted: tuple[Answer, ...]
    barred: tuple[Answer, ...]
    """Of negative seeds."""
    top_k: int

    @property
    def nearest(self) -> NearestSeeds:
        """The nearest images over all seeds but the negative ones."""
        return NearestSeeds(tuple(each.retrieved for each in self.wanted), self.top_k)


def ask_seeds(
    runner: Runner,
    crawl: Catalogued,
    seeds: Sequence[Catalogued],
    retrieved: Sequence[Retrieved],
    settings: Sequence[SeedSettings],
    thresholds: Sequence[Threshold],
    groups: Path,
    dropped: Dropped,
    copies: Held,
    clusters: ClusterSettings,
    top_k: int,
    threads: int,
) -> Answers:
    """Return what every seed retrieves among the images that nothing else drops.

    `crawl` and `seeds` are as the embedder for meaning sees them; `groups` is what dedup left. What
    a seed retrieves depends on no other seed but for the `copies` of images of included ones.
    """
    answers = []
    for seed, near, asked, threshold in zip(seeds, retrieved, settings, thresholds, strict=True):
        images = len(seed.collection.open_by_key)
        candidates = find_candidates(runner, crawl.collection, groups, dropped, copies, near)
        question = Question(
            *(runner, crawl, seed, candidates, threshold.value, clusters, threads),
        )
        asked = asked.resolve(images)
        chosen = choose(question, asked)
        if chosen.threshold is not None and chosen.target is not None:
            threshold = Threshold(chosen.threshold, "target")
        answers.append(Answer(asked, images, threshold, near, candidates, chosen))
    return Answers(
        tuple(each for each in answers if not each.settings.negative),
        tuple(each for each in answers if each.settings.negative),
        top_k,
    )
