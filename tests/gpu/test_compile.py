"""Compiled blocks on a card, in bfloat16 and with stochastic depth, compute what eager ones do."""

from __future__ import annotations

import pytest
import torch
from compiled_blocks import forward_and_backward, relative_error

pytestmark = pytest.mark.gpu


def test_compiled_blocks_are_the_eager_ones(device: torch.device) -> None:
    found, expected = (
        forward_and_backward(device, compiled=compiled, drop_path=0.0) for compiled in (True, False)
    )
    for name, tensor in expected.items():
        allowed = 2e-2 if name in ("loss", "cls") else 1e-1
        assert relative_error(found[name], tensor) < allowed, name


def test_stochastic_depth_follows_its_seed_when_compiled(device: torch.device) -> None:
    first, again, other = (
        forward_and_backward(device, compiled=True, drop_path=0.5, seed=seed) for seed in (1, 1, 2)
    )
    assert all(tensor.isfinite().all() for tensor in first.values())
    assert relative_error(again["loss"], first["loss"]) < 1e-3
    assert relative_error(other["cls"], first["cls"]) > 1e-2
