"""Steps whose host never waits for the card: torch raises where it would, and figures come late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from small_step import VALUES, batch, recipe, system_on

from train.data.copied_ahead import copied_ahead
from train.step import Report, optimiser_step, to_device

pytestmark = pytest.mark.gpu

STEPS = range(3)


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("photometric_on", ["cpu", "gpu"])
@pytest.mark.parametrize("centering", ["sinkhorn", "ema"])
def test_a_step_and_its_batch_never_wait_for_the_card(
    device: torch.device, centering: str, photometric_on: str
) -> None:
    system = system_on(device, objectives={"centering": {"kind": centering}})
    loaded = [[batch(step, photometric_on)] for step in STEPS]
    if device.type == "cuda":
        loaded = [[one.pin_memory() for one in micro] for micro in loaded]
    reports: list[Report] = []
    for number, micro in enumerate(copied_ahead(iter(loaded), device)):
        # The first step makes what lasts: buffers of libraries, page-locked memory.
        with no_waiting(device if number else torch.device("cpu")):
            views = [to_device(one, device) for one in micro]
            reports.append(optimiser_step(system, views, VALUES, number, {"asked": 0}))
            reports[-1].agreement.fetch()
            if number:
                assert not reports[-2].skipped
                assert reports[-2].losses["loss"] > 0


def test_what_is_copied_ahead_is_what_was_loaded(device: torch.device) -> None:
    loaded = [[batch(step)] for step in STEPS]
    pinned = [[b.pin_memory() if device.type == "cuda" else b for b in micro] for micro in loaded]
    for (there,), (here,) in zip(copied_ahead(iter(pinned), device), loaded, strict=True):
        torch.empty(2**20, device=device).normal_()  # takes memory that was given back too early
        for name, tensor in here.tensors().items():
            assert getattr(there, name).device == device, name
            assert torch.equal(getattr(there, name).cpu(), tensor), name


def test_a_skipped_step_moves_nothing_on_the_card(device: torch.device) -> None:
    assert recipe().optimiser.clip is not None
    system = system_on(device, objectives={"centering": {"kind": "ema"}})
    for poison in (False, True):
        views = to_device(batch(0), device)
        if poison:
            views.global_views[0, 0, 0, 0] = torch.nan
        kept = [
            *system.student.parameters(),
            *system.teacher.parameters(),
            *(t for state in system.optimiser.state.values() for t in state.values()),
            *(t for centering in system.centerings for t in centering.buffers()),
        ]
        before = [tensor.detach().clone() for tensor in kept]
        report = optimiser_step(system, [views], VALUES, 0)
        assert report.skipped == poison
        same = [torch.equal(tensor, old) for tensor, old in zip(kept, before, strict=True)]
        assert all(same) == poison
