"""Scores features by DINO's weighted k-nearest-neighbour classifier (arXiv 2104.14294, section 4.1),
and by a linear one beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from shared.embedders.evaluation_transform import square
from shared.errors import LvdError
from train.data.crops import normalise
from train.data.labelled import LabelledImages, class_numbers
from train.distributed.ranks import Ranks, sum_over_ranks
from train.evaluation.neighbours import largest, neighbours, weighted_vote
from train.monitoring.probe import linear_score
from train.monitoring.settings import KnnSettings

Features = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""What maps normalised images float [n, 3, h, w] to (CLS tokens [n, d], anything else)."""


class Knn:
    """The two labelled datasets of a run, and the score of features on them.

    The processes share the work: each embeds every world-th image, asks its own share of the voters
    for each test image's neighbours, and they pick the nearest of all. No image is padded with or
    counted twice, and all return the score that one process alone would.
    """

    def __init__(self, settings: KnnSettings, *, size: int, scratch: Path, ranks: Ranks) -> None:
        """Find the data; LvdError where it is not there. `size` holds where the settings have none.

        `scratch` is a folder for nameless copies of remote and compressed shards.
        """
        self._settings, self._ranks = settings, ranks
        self._voters = self._images("train", settings.train, size, scratch)
        self._tested = self._images("test", settings.test, size, scratch)

    def _images(self, name: str, path: str | None, size: int, scratch: Path) -> LabelledImages:
        if path is None:
            raise LvdError(f"knn.{name} is not set: name labelled images for the k-NN score")
        return LabelledImages(
            f"knn.{name}",
            path,
            transform=square(self._settings.size or size),
            batch_size=self._settings.batch_size,
            scratch=scratch,
            rank=self._ranks.rank,
            world=self._ranks.world,
        )

    def score(self, features: Features, autocast: AbstractContextManager[Any]) -> float:
        """Return the share of test images that k-NN classifies rightly, as `scores`."""
        return self.scores(features, autocast)["knn"]

    @torch.no_grad()
    def scores(self, features: Features, autocast: AbstractContextManager[Any]) -> dict[str, float]:
        """Return the shares of test images classified rightly; NaN where features are not finite.

        `knn` is that of the neighbours, `linear` that of `train.monitoring.probe.linear_score`.
        `features`, a backbone in eval mode for one, is called equally often by every process, and
        may be a sharded model. Images come without augmentation; decoded once, they are kept as
        far as memory's bound allows.
        """
        with autocast:
            bank, places = self._embedded(self._voters, features)
            queries, asking = self._embedded(self._tested, features)
        classes, (votes, answers) = class_numbers(self._voters.labels, self._tested.labels)
        votes, answers = votes.to(places.device), answers.to(places.device)
        whole = sum_over_ranks(_spread(torch.ones_like(asking), asking, len(answers))).bool()
        queries = sum_over_ranks(_spread(queries, asking, len(answers)))[whole]
        linear = linear_score(bank, votes[places], queries, answers[whole], classes)
        similarities, index = neighbours(queries, bank, self._settings.k)
        if self._ranks.world > 1:
            similarities, chosen = self._nearest_of_all(similarities, places[index])
        else:
            chosen = places[index]
        # NaN sorts first; without a single voter there is no first.
        if not (similarities.shape[1] and similarities[:, 0].isfinite().all()):
            return {"knn": math.nan, "linear": linear}
        said = weighted_vote(similarities, votes[chosen], classes, self._settings.temperature)
        right = (said == answers[whole]).double().mean().item()
        return {"knn": right, "linear": linear}

    def _embedded(self, images: LabelledImages, features: Features) -> tuple[Tensor, Tensor]:
        """Return this process's CLS tokens, float32 [n, d], and their places in the dataset [n]."""
        tokens, places = [], []
        device = self._ranks.device
        for batch in images.batches():
            pixels = batch.images
            if not len(pixels):  # what is embedded in its place only keeps the processes together
                pixels = torch.zeros(1, *pixels.shape[1:], dtype=pixels.dtype)
            cls, _ = features(normalise(pixels.to(device)))
            tokens.append(cls.float()[: len(batch.images)])
            places.append(batch.places.to(device))
        return torch.cat(tokens), torch.cat(places)

    def _nearest_of_all(self, similarities: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the k nearest [q, k] of all processes' candidates, and their places [q, k]."""
        k = self._settings.k
        missing = (0, k - similarities.shape[1])  # of a share of the bank that is under k
        similarities = functional.pad(similarities, missing, value=-math.inf)
        mine = torch.tensor([self._ranks.rank], device=places.device)
        similarities, places = (
            sum_over_ranks(_spread(own[None], mine, self._ranks.world)).movedim(0, 1).flatten(1)
            for own in (similarities, functional.pad(places, missing))
        )
        places, order = places.sort(dim=1)
        similarities, columns = largest(similarities.gather(1, order), k)
        return similarities, places.gather(1, columns)


def _spread(own: Tensor, places: Tensor, length: int) -> Tensor:
    """Return zeros of `length` rows but for `own` rows at `places`."""
    return own.new_zeros(length, *own.shape[1:]).index_copy_(0, places, own)
