"""What keeps a card at work: batches come page-locked, and figures are read a step late."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_card import CUDA
from small_run import RECIPE, write_shards

import train.loop
from train.distributed.agreement import Agreement
from train.distributed.ranks import Ranks
from train.recipe import Recipe
from train.step import Report


def test_figures_are_read_behind_the_next_step_or_where_they_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    step, read = train.loop.optimiser_step, vars(Agreement)["_read"].func
    numbers: dict[int, int] = {}

    def noted_step(system: Any, batches: Any, values: Any, number: int, counts: Any) -> Report:
        happened.append(f"step {number}")
        report = step(system, batches, values, number, counts)
        numbers[id(report.agreement)] = number
        return report

    def noted_read(agreement: Agreement) -> Any:
        happened.append(f"read {numbers[id(agreement)]}")
        return read(agreement)

    noted = cached_property(noted_read)
    noted.__set_name__(Agreement, "_read")
    monkeypatch.setattr(Agreement, "_read", noted)
    monkeypatch.setattr(train.loop, "optimiser_step", noted_step)
    changes = {"steps": 4, "log": {"every": 3, "tensorboard": False}, "checkpoints": {"every": 9}}
    train.loop.train(
        Recipe.model_validate(RECIPE | changes),
        str(write_shards(tmp_path / "shards")),
        tmp_path / "out",
    )
    assert happened == [
        *("step 0", "step 1", "read 0", "step 2", "read 1", "read 2"),
        *("step 3", "read 3"),
    ]


@pytest.mark.parametrize("device", [CUDA, "cpu"])
def test_batches_for_a_card_are_page_locked(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        train.loop, "make_loader", lambda *_, **options: asked.update(options) or iter(())
    )
    ranks = Ranks(0, 1, 0, torch.device(device))
    system = SimpleNamespace(
        recipe=Recipe.model_validate(RECIPE), ranks=ranks, grid=(4, 4), patches=0
    )
    assert not list(train.loop._load(system, None, None, None, range(1)))
    assert asked["pin_memory"] == (device == CUDA)
