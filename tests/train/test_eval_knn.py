"""`eval knn` equals a brute-force search in float64, for every k, ties and small banks included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from train.evaluation.features import Bank
from train.evaluation.knn import KnnEvalSettings, knn


def bank(features: np.ndarray, labels: list[str]) -> Bank:
    return Bank(labels, [str(n) for n in range(len(labels))], torch.from_numpy(features).half())


def brute_force(train: Bank, test: Bank, k: int, temperature: float) -> float:
    """The share said rightly, one query at a time; ties go to the first row and the first class."""
    voters, asked = (some.pooled.double().numpy() for some in (train, test))
    classes = sorted({*train.labels, *test.labels})
    right = 0
    for query, label in zip(asked, test.labels, strict=True):
        norms = np.linalg.norm(voters, axis=1) * np.linalg.norm(query)
        cosines = voters @ query / norms
        order = sorted(range(len(voters)), key=lambda n: (-round(cosines[n], 9), n))[:k]
        votes = dict.fromkeys(classes, 0.0)
        for n in order:
            votes[train.labels[n]] += math.exp(cosines[n] / temperature)
        right += max(classes, key=lambda name: (votes[name], -classes.index(name))) == label
    return right / len(test.labels)


@pytest.mark.parametrize("tied", [False, True])
def test_every_k_is_that_of_a_search_of_its_own(tied: bool) -> None:
    draw = np.random.default_rng(1)
    centres = draw.normal(size=(4, 6))
    labels = [str(n % 4) for n in range(90)]
    features = np.stack([centres[int(label)] for label in labels]) + draw.normal(size=(90, 6))
    if tied:  # every voter stands there twice, once under another class
        features[30:60] = features[:30]
    train, test = bank(features[:60], labels[:60]), bank(features[60:], labels[60:])
    scores = knn(train, test, KnnEvalSettings(k=(1, 3, 10, 60)))
    for score, k in zip(scores, (1, 3, 10, 60), strict=True):
        assert score.value == pytest.approx(brute_force(train, test, k, 0.07)), k
        assert score.setting == f"k={k}"
        assert not score.note


def test_fewer_voters_than_k_and_classes_without_one_are_said() -> None:
    train = bank(np.eye(4), ["a", "a", "b", "b"])
    test = bank(np.eye(4)[:3], ["a", "a", "c"])
    (score,) = knn(train, test, KnnEvalSettings(k=(10,)))
    assert score.value == pytest.approx(2 / 3)
    assert "only 4 images vote" in score.note
    assert "1 images are of classes" in score.note
