import math

import numpy as np
import pytest
import torch

from shared.errors import LvdError
from train.optimisation.ema import update_teacher
from train.optimisation.groups import set_values
from train.optimisation.schedules import Schedules, Values, cosine
from train.optimisation.settings import OptimiserSettings, TeacherSettings

PUBLISHED = {
    "batch_size": 2048,
    "total_steps": 125_000,
    "steps_per_epoch": 1250,
}


def short_vitl16():
    """ViT-L/16 "short" of DINOv2, facts.md section 3."""
    optimiser = OptimiserSettings(
        base_lr=4e-3, warmup_epochs=10, weight_decay=(0.04, 0.4), layer_decay=0.9
    )
    return Schedules(optimiser, TeacherSettings(momentum=(0.992, 1.0)), **PUBLISHED)


def short_run(**optimiser):
    return Schedules(
        OptimiserSettings(**({"warmup_epochs": 2} | optimiser)),
        TeacherSettings(temperature_warmup_epochs=3),
        batch_size=1024,
        total_steps=100,
        steps_per_epoch=10,
    )


def test_every_value_of_the_published_recipe_equals_a_float64_reference():
    schedules = short_vitl16()
    total, warmup, warm = 125_000, 12_500, 37_500
    peak = 4e-3 * math.sqrt(2)
    steps = np.arange(0, total, 97)

    def half_wave(start, end, at, length):
        return end + 0.5 * (start - end) * (1 + np.cos(np.pi * at / length))

    expected = {
        "lr": np.where(
            steps < warmup,
            peak * steps / warmup,
            half_wave(peak, 1e-6, steps - warmup, total - warmup),
        ),
        "weight_decay": half_wave(0.04, 0.4, steps, total),
        "momentum": half_wave(0.992, 1.0, steps, total),
        "teacher_temperature": np.where(steps < warm, 0.04 + 0.03 * steps / warm, 0.07),
        "last_layer_frozen": steps < 1250,
    }
    values = [schedules.at(int(step)) for step in steps]
    for name, reference in expected.items():
        np.testing.assert_allclose([getattr(v, name) for v in values], reference, rtol=1e-12)


# pitfall 11
@pytest.mark.parametrize("lr_schedule", ["cosine", "constant"])
def test_schedules_are_defined_and_constant_past_their_end(lr_schedule):
    schedules = short_run(lr_schedule=lr_schedule)
    lr = 1e-6 if lr_schedule == "cosine" else 2e-4
    end = Values(lr, 0.2, 1.0, 0.07, False)
    assert [schedules.at(step) for step in (100, 101, 150, 10**9)] == [end] * 4
    assert schedules.at(99) != end


def test_the_warm_up_starts_at_zero_and_meets_the_cosine_at_the_peak():
    schedules = short_run()
    lrs = [schedules.at(step).lr for step in range(101)]
    assert lrs[0] == 0
    assert lrs[20] == max(lrs) == 2e-4
    assert lrs[:21] == sorted(lrs[:21])
    assert lrs[20:] == sorted(lrs[20:], reverse=True)


def test_without_a_warm_up_the_first_step_has_the_peak():
    assert short_run(warmup_epochs=0).at(0).lr == 2e-4


def test_without_its_warm_up_the_teacher_temperature_is_the_final_one_at_once():
    teacher = TeacherSettings(temperature_warmup_epochs=0)
    schedules = Schedules(OptimiserSettings(warmup_epochs=0), teacher, 1024, 100, 10)
    assert schedules.at(0).teacher_temperature == 0.07


def test_epochs_may_be_fractions():
    schedules = short_run(warmup_epochs=0.5, freeze_last_layer_epochs=0.25)
    assert schedules.at(5).lr == 2e-4 > schedules.at(4).lr
    assert [schedules.at(step).last_layer_frozen for step in (0, 1, 2, 3)] == [
        True,
        True,
        *[False] * 2,
    ]


def test_nothing_is_frozen_where_the_freeze_is_zero():
    assert not short_run(freeze_last_layer_epochs=0).at(0).last_layer_frozen


@pytest.mark.parametrize(
    ("scaling", "reference", "batch", "peak"),
    [
        ("sqrt", 1024, 4096, 4e-4),
        ("sqrt", 1024, 64, 5e-5),
        ("linear", 256, 1024, 8e-4),
        ("none", 1024, 64, 2e-4),
    ],
)
def test_the_peak_is_scaled_with_the_global_batch(scaling, reference, batch, peak):
    settings = OptimiserSettings(warmup_epochs=0, lr_scaling=scaling, reference_batch=reference)
    schedules = Schedules(settings, TeacherSettings(), batch, 100, 10)
    assert schedules.at(0).lr == pytest.approx(peak, rel=1e-12)


def test_the_settings_of_dino_2021_are_expressible():
    optimiser = OptimiserSettings(
        base_lr=5e-4,
        lr_scaling="linear",
        reference_batch=256,
        warmup_epochs=10,
        weight_decay=(0.04, 0.4),
        patch_embed_lr=1.0,
    )
    teacher = TeacherSettings(momentum=(0.996, 1.0), temperature_warmup_epochs=30)
    schedules = Schedules(optimiser, teacher, 1024, 125_000, 1250)
    assert schedules.at(12_500).lr == pytest.approx(5e-4 * 1024 / 256)
    assert schedules.at(0).momentum == pytest.approx(0.996, abs=1e-15)
    assert schedules.at(37_500).teacher_temperature == 0.07
    assert schedules.at(1249).last_layer_frozen
    assert not schedules.at(1250).last_layer_frozen


def test_constant_schedules_are_constant():
    optimiser = OptimiserSettings(
        warmup_epochs=0,
        lr_schedule="constant",
        weight_decay=(0.04, 0.04),
        freeze_last_layer_epochs=0,
    )
    teacher = TeacherSettings(momentum=(0.999, 0.999), temperature=(0.05, 0.05))
    schedules = Schedules(optimiser, teacher, 1024, 100, 10)
    assert {schedules.at(step) for step in range(120)} == {Values(2e-4, 0.04, 0.999, 0.05, False)}


def test_a_cosine_ends_exactly_where_it_should():
    assert [cosine(0.994, 1.0, progress) for progress in (0.0, 1.0, 1.7)] == [0.994, 1.0, 1.0]


@pytest.mark.parametrize("name", ["warmup_epochs", "freeze_last_layer_epochs"])
def test_a_run_within_its_warm_up_or_freeze_is_refused_in_one_line(name):
    with pytest.raises(LvdError) as caught:
        short_run(**{name: 10})
    assert str(caught.value) == (
        f"optimiser.{name} is 10 (100 steps), and the run ends after 100 steps: "
        "set it below 10, or train for longer"
    )
    assert short_run(**{name: 9.9}).at(99).lr > 0


def test_a_minimum_above_the_peak_is_refused_unless_nothing_reads_it():
    with pytest.raises(LvdError, match=r"optimiser.min_lr is 0.001, above the peak") as caught:
        short_run(min_lr=1e-3)
    assert "\n" not in str(caught.value)
    assert short_run(min_lr=1e-3, lr_schedule="constant").at(50).lr == 2e-4


def test_groups_get_their_share_of_the_values():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimiser = torch.optim.AdamW(
        [
            {"params": parameters[:1], "lr_scale": 0.2, "decay": True},
            {"params": parameters[1:], "lr_scale": 1.0, "decay": False},
        ]
    )
    set_values(optimiser, Values(1e-3, 0.1, 0.9, 0.04, False))
    assert [(g["lr"], g["weight_decay"]) for g in optimiser.param_groups] == [
        (pytest.approx(2e-4), 0.1),
        (1e-3, 0.0),
    ]


# pitfall 20
def test_schedules_and_teacher_move_per_optimiser_step_and_not_per_micro_batch():
    torch.manual_seed(0)
    images = torch.randn(6, 8, 5, dtype=torch.float64)

    def trained(accumulate):
        torch.manual_seed(1)
        student = torch.nn.Linear(5, 3).double()
        teacher = torch.nn.Linear(5, 3).double()
        optimiser = torch.optim.AdamW(
            [{"params": list(student.parameters()), "lr_scale": 1.0, "decay": True}]
        )
        schedules = Schedules(
            OptimiserSettings(base_lr=0.1, lr_scaling="none", warmup_epochs=1),
            TeacherSettings(momentum=(0.5, 1.0)),
            batch_size=8,
            total_steps=6,
            steps_per_epoch=2,
        )
        for step, batch in enumerate(images):
            values = schedules.at(step)
            optimiser.zero_grad()
            for micro_batch in batch.chunk(accumulate):
                (student(micro_batch).square().mean() / accumulate).backward()
            set_values(optimiser, values)
            optimiser.step()
            update_teacher(student, teacher, values.momentum)
        return student, teacher, optimiser

    whole, cut = trained(1), trained(4)
    for one, other in zip(whole[:2], cut[:2], strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-9, atol=1e-12)
    assert cut[2].state[cut[0].weight]["step"] == 6
