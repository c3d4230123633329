"""Indicators are what their formulas say, and take their worst values for collapsed teachers."""

import math

import pytest
import torch

from train.monitoring.indicators import feature_rank, indicators
from train.objectives import tiles
from train.objectives.targets import Targets

ROWS, PROTOTYPES = 6, 8
FEATURES = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def targets_of(probabilities):
    return Targets(probabilities, torch.ones(PROTOTYPES))


def drawn():
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(ROWS, PROTOTYPES, generator=generator)).softmax(dim=1)


def test_they_are_what_their_formulas_say(monkeypatch):
    probabilities = drawn()
    monkeypatch.setattr(tiles, "CPU_BLOCK", 2 * PROTOTYPES)
    found = indicators([targets_of(part) for part in probabilities.split([1, 5])], FEATURES)
    rows = probabilities.double().tolist()
    entropies = [-sum(q * math.log(q) for q in row) for row in rows]
    divergences = [sum(q * math.log(q * PROTOTYPES) for q in row) for row in rows]
    mean = [sum(row[k] for row in rows) / ROWS for k in range(PROTOTYPES)]
    perplexity = math.exp(-sum(q * math.log(q) for q in mean))
    assert found == pytest.approx(
        {
            "teacher_entropy": sum(entropies) / ROWS,
            "kl_to_uniform": sum(divergences) / ROWS,
            "prototype_usage": perplexity / PROTOTYPES,
            "prototypes_won": len({row.index(max(row)) for row in rows}),
            "feature_rank": float(feature_rank(FEATURES)),
        },
        rel=1e-5,
    )


def test_a_uniform_teacher_says_nothing():
    found = indicators([targets_of(torch.full((ROWS, PROTOTYPES), 1 / PROTOTYPES))], FEATURES)
    assert found["teacher_entropy"] == pytest.approx(math.log(PROTOTYPES))
    assert found["kl_to_uniform"] == pytest.approx(0, abs=1e-6)


def test_a_teacher_with_one_prototype_uses_one():
    one = torch.zeros(ROWS, PROTOTYPES)
    one[:, 2] = 1
    found = indicators([targets_of(one)], FEATURES)
    assert found["teacher_entropy"] == 0
    assert found["prototypes_won"] == 1
    assert found["prototype_usage"] == pytest.approx(1 / PROTOTYPES)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_the_effective_rank_is_the_entropy_of_singular_values(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    singular = torch.linalg.svdvals(features.double())
    shares = [float(value / singular.sum()) for value in singular]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert float(feature_rank(features)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_effective_rank_counts_equal_directions(rank):
    features = torch.zeros(20, 6)
    features[torch.arange(rank), torch.arange(rank)] = 2
    assert float(feature_rank(features)) == pytest.approx(rank)


def test_features_that_are_zero_or_not_finite_are_no_error():
    assert float(feature_rank(torch.zeros(4, 3))) == 1
    assert math.isnan(feature_rank(torch.full((4, 3), torch.nan)))
