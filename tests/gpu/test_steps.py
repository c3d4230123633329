"""Training steps on a card: the losses of the CPU, through pinned memory, and across a resumption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from small_step import batch, system_on, train

from train.data.crops import finish_views
from train.monitoring.indicators import indicators
from train.persistence.checkpoints import save
from train.snapshot import restore, snapshot
from train.step import to_device

pytestmark = pytest.mark.gpu

STEPS = range(4)
CPU = torch.device("cpu")


@pytest.mark.parametrize("centering", ["sinkhorn", "ema"])
@pytest.mark.parametrize("estimator", ["nearest", "squared_cosine"])
def test_a_card_has_the_losses_of_the_cpu(
    device: torch.device, centering: str, estimator: str
) -> None:
    objectives = {"centering": {"kind": centering}, "koleo_estimator": estimator}
    compare_losses(device, objectives=objectives)


@pytest.mark.parametrize("projector", [None, {"hidden": 32, "width": 16}])
def test_a_card_has_the_losses_of_the_cpu_without_a_teacher(
    device: torch.device, projector: dict | None
) -> None:
    objectives = {"dino": 0, "ibot": 0, "infonce": 1}
    compare_losses(device, objectives=objectives, heads=None, masks=None, projector=projector)


def compare_losses(device: torch.device, **changes: object) -> None:
    there, here = (train(system_on(place, **changes), STEPS) for place in (device, CPU))
    for ours, theirs in zip(there, here, strict=True):
        assert not ours.skipped
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-3, abs=1e-5)
        assert ours.norms == pytest.approx(theirs.norms, rel=2e-2)
        found = indicators(ours.targets, ours.features)
        assert found == pytest.approx(indicators(theirs.targets, theirs.features), rel=2e-2)


def test_bfloat16_differs_by_its_rounding(device: torch.device) -> None:
    parallel = {"precision": "bfloat16"}
    rounded, exact = (
        train(system_on(device, **changes), STEPS) for changes in ({"parallel": parallel}, {})
    )
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.losses["loss"] == pytest.approx(theirs.losses["loss"], rel=2e-2)


def test_a_step_with_all_memory_savings_is_the_plain_one(device: torch.device) -> None:
    parallel = {"precision": "float32", "activation_checkpointing": True}
    saving, plain = (
        train(system_on(device, **changes), STEPS) for changes in ({"parallel": parallel}, {})
    )
    for ours, theirs in zip(saving, plain, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-3, abs=1e-5)


def test_a_resumed_run_has_the_losses_of_one_that_was_never_interrupted(
    device: torch.device, tmp_path: Path
) -> None:
    model = {"objectives": {"centering": {"kind": "ema"}}}
    whole = system_on(device, **model)
    train(whole, STEPS[:2])
    counts: Counter[str] = Counter(broken=3)
    path = save(tmp_path, 2, snapshot(whole, 2, counts), 1, whole.ranks)
    kept = {name: tensor.clone() for name, tensor in whole.teacher.state_dict().items()}
    expected = train(whole, STEPS[2:])

    resumed, counted = system_on(device, **model), Counter()
    assert restore(resumed, counted, path) == 2
    assert counted["broken"] == 3
    for name, tensor in resumed.teacher.state_dict().items():
        assert tensor.device == device
        assert torch.equal(tensor, kept[name]), name
    for state in resumed.optimiser.state.values():
        assert {tensor.device for tensor in state.values()} == {device}
        assert state["step"].item() == 2
    for ours, theirs in zip(train(resumed, STEPS[2:]), expected, strict=True):
        # Sums by atomic additions, as of index_add's gradient, come in any order.
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-3, abs=1e-5)


def test_views_finished_on_the_card_are_those_of_the_cpu(device: torch.device) -> None:
    deferred = batch(0, "gpu")
    # Solarisation makes one level of rounding at 128 into 127 of them.
    chosen = deferred.photometric | {"solarise": torch.zeros_like(deferred.photometric["solarise"])}
    views = deferred.global_views, deferred.local_views
    here = finish_views(*views, chosen)
    there = finish_views(*(some.to(device) for some in views), chosen)
    for ours, theirs, before in zip(there, here, views, strict=True):
        assert ours.device == device
        assert not torch.equal(theirs, before)
        assert (ours.cpu().int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize("photometric_on", ["cpu", "gpu"])
def test_a_batch_goes_to_the_card_through_pinned_memory(
    device: torch.device, photometric_on: str
) -> None:
    loaded = batch(0, photometric_on)
    if device.type == "cuda":
        loaded = loaded.pin_memory()
        for tensor in loaded.tensors().values():
            assert tensor.is_pinned()
    there, here = to_device(loaded, device), to_device(batch(0), CPU)
    assert torch.equal(there.masks.cpu(), here.masks)
    assert torch.equal(there.index.cpu(), here.index)
    assert torch.equal(there.weights.cpu(), here.weights)
    for ours, theirs in (
        (there.global_views, here.global_views),
        (there.local_views, here.local_views),
    ):
        assert ours.device == device
        # A grey level is 1 / (255 * 0.225) of a deviation; solarised ones may lie on either side.
        near = (ours.cpu() - theirs).abs() <= 0.02
        assert near.float().mean() > 0.999
