import math

import pytest
import torch
from given_logits import given

from train.monitoring.collapse import RECOVERED, CollapseWatch, signs
from train.monitoring.indicators import indicators
from train.monitoring.settings import CollapseSettings
from train.objectives.centering import EmaCentre, SinkhornKnopp

SIZES = {"prototypes": 1024, "images": 200, "dim": 64, "features": 128}
WELL = {
    "teacher_entropy": 3.0,
    "kl_to_uniform": 2.0,
    "prototypes_won": 90.0,
    "feature_rank": 30.0,
}
SICK = [
    ("peaked", "teacher_entropy", 0.01, "entropy of 0.010 nats, under 0.050"),
    ("uniform", "kl_to_uniform", 0.002, "0.002 nats, under 0.050"),
    ("few_prototypes", "prototypes_won", 3.0, "3 of 1,024 come first for 200 images, under 10.0"),
    ("low_rank", "feature_rank", 1.1, "rank of 1.1 in 64 dimensions, under 1.5"),
]


def watch(**settings):
    return CollapseWatch(CollapseSettings(grace=100, **settings), **SIZES)


def shown(metrics, **sizes):
    found = signs(metrics, CollapseSettings(), **(SIZES | sizes))
    return [sign.name for sign in found if sign.shows]


@pytest.mark.parametrize(("name", "metric", "value", "figure"), SICK)
def test_each_sign_is_said_once_then_its_end_then_its_return(name, metric, value, figure, capsys):
    sick = WELL | {metric: value}
    looking = watch()
    assert looking.look(100, WELL) == []
    assert capsys.readouterr().err == ""
    assert looking.look(110, sick) == [name]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("warning: step 110: collapse? ")
    assert figure in said
    assert "; try: " in said
    assert looking.look(120, sick) == [name]
    assert capsys.readouterr().err == ""
    assert looking.look(130, WELL) == []
    assert capsys.readouterr().err.startswith("step 130: no longer: ")
    assert looking.look(140, WELL) == []
    assert capsys.readouterr().err == ""
    assert looking.look(150, sick) == [name]
    assert "step 150: collapse?" in capsys.readouterr().err


def test_nothing_is_judged_before_the_grace_is_over(capsys):
    sick = {metric: value for _, metric, value, _ in SICK}
    looking = watch()
    assert looking.look(99, sick) == []
    assert capsys.readouterr().err == ""
    assert looking.look(100, sick) == [name for name, *_ in SICK]


def test_a_figure_that_wavers_at_its_threshold_is_said_once(capsys):
    looking = watch(divergence=1.0)
    for step in range(200, 300, 10):
        value = 0.99 if step % 20 else (1 + RECOVERED) / 2
        assert looking.look(step, WELL | {"kl_to_uniform": value}) == ["uniform"] * (value < 1)
    assert capsys.readouterr().err.count("\n") == 1


def test_figures_that_are_not_numbers_show_nothing():
    assert shown(dict.fromkeys(WELL, math.nan)) == []


def test_thresholds_follow_what_can_be_reached():
    assert shown(WELL | {"prototypes_won": 9.0}) == ["few_prototypes"]
    assert shown(WELL | {"prototypes_won": 9.0}, images=64) == []
    assert shown(WELL | {"prototypes_won": 9.0}, prototypes=64) == []
    assert shown(WELL | {"feature_rank": 3.0}, dim=1024, features=512) == ["low_rank"]
    assert shown(WELL | {"feature_rank": 3.0}, dim=1024, features=32) == []


def test_real_targets_of_a_healthy_and_of_a_collapsed_teacher_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(200, 64, generator=generator)
    prototypes = torch.nn.functional.normalize(torch.randn(1024, 64, generator=generator), dim=1)

    def measured(features):
        logits = torch.nn.functional.normalize(features, dim=1) @ prototypes.T
        return indicators(SinkhornKnopp(3).targets([given(logits)], 0.05), features)

    assert shown(measured(healthy)) == []
    same = healthy[:1].repeat(200, 1) + 1e-3 * healthy
    assert {"uniform", "low_rank"} <= set(shown(measured(same)))
    one = torch.full((200, 1024), -30.0)
    one[:, 5] = 30.0
    peaked = indicators(EmaCentre(1024).targets([given(one)], 0.05), healthy)
    assert shown(peaked) == ["peaked", "few_prototypes"]
