"""Scores features by DINO's weighted k-nearest-neighbour classifier (arXiv 2104.14294, section 4.1)."""

from __future__ import annotations

import torch

from shared.progress import stage_bar
from train.evaluation.classification.holdout import known_classes, unknown_in_test
from train.evaluation.features import Bank
from train.evaluation.neighbours import QUERY_BLOCK, neighbours, weighted_vote
from train.evaluation.scores import Score
from train.evaluation.settings import KnnEvalSettings

CPU = torch.device("cpu")


def knn(
    train: Bank, test: Bank, settings: KnnEvalSettings, device: torch.device = CPU
) -> list[Score]:
    """Return the share of `test` that its neighbours in `train` name rightly, for each k.

    By the cosine of pooled features. Of equally similar neighbours the first rows count; of classes
    with equal votes the first wins. The note says where k is larger than the bank, all of which then
    votes, and how many images of `test` count as wrong because `train` has none of their class.
    Raises LvdError where `train` has one class only.
    """
    classes, labels, answers = known_classes(train.labels, test.labels)
    bank, labels, answers = train.pooled.to(device), labels.to(device), answers.to(device)
    # Of the largest k neighbours, which come in falling order, the first k are the k nearest.
    right = dict.fromkeys(settings.k, 0)
    with stage_bar("knn", len(test)) as bar:
        for queries, truth in zip(
            test.pooled.split(QUERY_BLOCK), answers.split(QUERY_BLOCK), strict=True
        ):
            cosines, rows = neighbours(queries.to(device), bank, max(settings.k))
            for k in right:
                of = labels[rows[:, :k]]
                said = weighted_vote(cosines[:, :k], of, classes, settings.temperature)
                right[k] += int((said == truth).sum())
            bar.advance(len(queries))
    unknown = unknown_in_test(train.labels, test.labels)
    return [
        Score(
            *("knn", "top-1", count / len(test), f"k={k}"),
            note="; ".join([*unknown, *_too_many(k, len(train))]),
        )
        for k, count in right.items()
    ]


def _too_many(k: int, images: int) -> list[str]:
    return [f"k={k} is more than the {images:,} images that vote: all do"] if k > images else []
