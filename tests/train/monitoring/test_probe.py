"""The linear probe beside k-NN: scikit-learn's ridge regression, however the bank is shared out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from train.monitoring import probe
from train.monitoring.probe import RIDGE, linear_score

CLASSES, DIM = 5, 12


def drawn(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of classes that overlap, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    centres = np.random.default_rng(0).normal(size=(CLASSES, DIM))
    features = centres[labels] + rng.normal(size=(count, DIM)) * 1.5 + 1
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def test_the_score_is_that_of_ridge_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    (bank, labels), (queries, answers) = drawn(300, 1), drawn(200, 2)
    x, asked = (f.numpy() / np.linalg.norm(f.numpy(), axis=1)[:, None] for f in (bank, queries))
    model = Ridge(alpha=len(x) * RIDGE * x.var(0).mean()).fit(x, np.eye(CLASSES)[labels.numpy()])
    expected = (model.predict(asked).argmax(1) == answers.numpy()).mean()
    assert 0.3 < expected < 0.95
    assert linear_score(bank, labels, queries, answers, CLASSES) == pytest.approx(expected)
    monkeypatch.setattr(probe, "_ROWS", 7)
    assert linear_score(bank, labels, queries, answers, CLASSES) == pytest.approx(expected)


def test_a_class_that_no_image_has_taught_is_never_right() -> None:
    bank, labels = drawn(50, 1)
    assert linear_score(bank, labels.clamp(max=1), bank, torch.full((50,), 4), CLASSES) == 0


def test_features_that_all_agree_name_the_commonest_class() -> None:
    ones, labels = torch.ones(6, 3), torch.tensor([1, 1, 1, 1, 0, 0])
    assert linear_score(ones, labels, ones, labels, 2) == pytest.approx(4 / 6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_have_no_score(bad: float) -> None:
    bank, labels = drawn(20, 1)
    wrong = bank.clone()
    wrong[3, 2] = bad
    assert math.isnan(linear_score(wrong, labels, bank, labels, CLASSES))
    assert math.isnan(linear_score(bank, labels, wrong, labels, CLASSES))
    assert math.isnan(linear_score(bank[:0], labels[:0], bank, labels, CLASSES))
