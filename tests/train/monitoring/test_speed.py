"""What a run says of its speed: tokens, arithmetic and the share of the cards' peak."""

from __future__ import annotations

import pytest
import torch
from small_run import RECIPE

from train.distributed.ranks import Ranks
from train.monitoring.speed import CARDS, Speed, of_card, peak_tflops, speed_of
from train.recipe import Recipe
from train.system import build_system


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_a_card_is_known_by_its_whole_name(name: str, card: str) -> None:
    assert of_card(name) == CARDS[card]


@pytest.mark.parametrize("name", ["NVIDIA A10G", "Tesla V100-SXM2-16GB", ""])
def test_a_card_that_is_not_known_is_taken_for_no_other(name: str) -> None:
    assert of_card(name) is None


def test_rates_follow_from_images_and_a_cpu_has_no_peak() -> None:
    assert peak_tflops(torch.device("cpu"), torch.bfloat16) is None
    on_card = Speed(tokens=100, flops=2e9, peak=10.0).rates(500)
    assert on_card == {"tokens_per_second": 50_000, "tflops": 1.0, "peak_share": 0.1}
    assert "peak_share" not in Speed(tokens=100, flops=2e9, peak=None).rates(500)


def test_a_runs_tokens_and_arithmetic_are_those_of_its_views() -> None:
    alone = Ranks(0, 1, 0, torch.device("cpu"))
    speed = speed_of(build_system(Recipe.model_validate(RECIPE), alone))
    of_global, of_local = 1 + (32 // 8) ** 2, 1 + (16 // 8) ** 2
    assert speed.tokens == 2 * (2 * of_global) + 2 * of_local
    # The matrices of two blocks of width 24, of the student three times and of the teacher once;
    # the last block's MLP is for what is read alone, and heads and attention come on top.
    of_blocks = 2 * 2 * 12 * 24**2 * (3 * (2 * of_global + 2 * of_local) + 2 * of_global)
    assert 0.8 * of_blocks < speed.flops < 1.6 * of_blocks
