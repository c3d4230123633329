"""When a run scores itself where its recipe leaves the interval open."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from train.monitoring.pace import SHARE, Pace, pace_of
from train.monitoring.settings import KnnSettings


@pytest.mark.parametrize(("step_seconds", "score_seconds"), [(0.2, 3.0), (1.0, 0.05), (0.1, 10.0)])
def test_scores_that_are_afforded_stay_within_their_share(
    step_seconds: float, score_seconds: float
) -> None:
    pace, taken, steps = Pace(), 0, 200_000
    pace.score(1.5 * score_seconds)  # the first one decodes
    for _ in range(steps):
        pace.train(step_seconds)
        if pace.affords:
            pace.score(score_seconds)
            taken += 1
    pace.score(score_seconds)
    assert taken
    assert 0.9 * SHARE < pace.share <= SHARE == 0.02
    assert pace.share == pytest.approx(
        (2.5 + taken) * score_seconds / ((2.5 + taken) * score_seconds + steps * step_seconds)
    )


def test_a_run_that_scores_would_slow_down_has_none_between_its_ends() -> None:
    pace = Pace()
    assert pace.affords, "what a score takes is not known yet"
    pace.score(1.0)
    pace.train(3.0 / SHARE - 3.0 - 1e-3)
    assert not pace.affords
    pace.train(2e-3)
    assert pace.affords


def test_a_run_that_goes_on_knows_what_its_scores_took() -> None:
    lines = [
        {"step": 0, "knn": 0.1, "knn_seconds": 3.0},
        {"step": 9, "loss": 1.0, "step_seconds": 0.5},
        {"step": 19, "loss": 1.0, "step_seconds": 0.25},
        {"step": 20, "knn": 0.2, "knn_seconds": 2.0},
    ]
    assert pace_of(lines) == Pace(trained=10 * 0.5 + 10 * 0.25, scored=5.0, last=2.0)


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({}, False),
        ({"train": "a", "test": "b"}, True),
        ({"train": "a", "test": "b", "every": 5}, True),
        ({"train": "a", "test": "b", "every": None}, False),
        ({"every": None}, False),
    ],
)
def test_scores_are_taken_where_data_is_named(settings: dict, taken: bool) -> None:
    assert KnnSettings.model_validate(settings).taken is taken


@pytest.mark.parametrize("settings", [{"train": "a"}, {"test": "b"}, {"every": 5}, {"every": 0}])
def test_half_of_the_data_or_an_interval_without_it_is_refused(settings: dict) -> None:
    with pytest.raises(ValidationError):
        KnnSettings.model_validate(settings)
