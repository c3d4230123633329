"""The fake card refuses what a card refuses, and computes the shapes and types that it would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fake_card import CUDA, fake_card, on_card
from torch import Tensor, nn
from torch.nn.functional import conv2d, layer_norm, linear, scaled_dot_product_attention

MIXTURES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "add": lambda a, b: a + b,
    "add in place": lambda a, b: a.add_(b),
    "cat": lambda a, b: torch.cat([a, b]),
    "stack": lambda a, b: torch.stack([b, a]),
    "linear": linear,
    "product": lambda a, b: b @ a,
    "norm": lambda a, b: layer_norm(a, (4,), b[0]),
    "convolution": lambda a, b: conv2d(a[None, None], b[None, None]),
    "attention": lambda a, b: scaled_dot_product_attention(a, b, a),
    "where": lambda a, b: torch.where(b.bool(), a, a),
    "masked fill": lambda a, b: a.masked_fill(b.bool(), 0),
    "gather": lambda a, b: a.gather(0, b.long()),
    "index select": lambda a, b: a.index_select(0, b[0].long()),
    "index add": lambda a, b: a.index_add(0, b[0].long(), a),
    "index copy": lambda a, b: a.index_copy(0, b[0].long(), a),
    "index": lambda a, b: a[b[0].long()],
    "mask": lambda a, b: a[b.bool()],
    "write by index": lambda a, b: a.__setitem__(b[0].long(), 0),
    "write": lambda a, b: a.index_put_([a[0].long()], b),
    "out": lambda a, b: torch.add(a, a, out=b),
    "lerp": lambda a, b: torch._foreach_lerp_([a], [b], 0.5),
    "join": lambda a, b: torch.stack([a.sum(), b.sum()]),
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_tensors_of_both_devices_are_refused_together(mixture: str) -> None:
    mix = MIXTURES[mixture]
    here, other = torch.ones(4, 4), torch.ones(4, 4)
    with fake_card():
        mix(here, other)
        mix(here.to(CUDA), other.to(CUDA))
        for pair in ((here.to(CUDA), other), (here, other.to(CUDA))):
            with pytest.raises(RuntimeError, match="device"):
                mix(*pair)


def test_the_cpu_stays_real() -> None:
    with fake_card() as card:
        found = torch.arange(4).float().to(CUDA, non_blocking=True) * 2
        assert (found.shape, found.device, found.dtype) == ((4,), CUDA, torch.float32)
        assert torch.arange(4).sum().item() == 6
        assert card.reads == {}


def test_what_the_host_reads_is_counted_and_one() -> None:
    with fake_card() as card:
        there = torch.zeros(2, 3, device=CUDA)
        assert there.sum().item() == 1.0
        assert bool(there.any()) is True
        assert there.cpu().numpy().tolist() == [[1, 1, 1], [1, 1, 1]]
        assert there[there > 0].shape == (6,)
        here = torch.zeros(2, 3)
        here.copy_(there)
        assert here.sum() == 6
        assert card.reads == {"a test": 5}


def test_a_module_moves_there_and_autocast_is_the_cards() -> None:
    with fake_card():
        module = nn.Linear(3, 2).to(CUDA)
        assert on_card(module)
        with torch.autocast("cuda", torch.bfloat16):
            assert module(torch.ones(5, 3, device=CUDA)).dtype == torch.bfloat16


def test_a_backward_pass_without_the_engine_gives_its_gradients() -> None:
    """On the CPU, where both can be run: broadcasts, shared inputs and types included."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 6)).double()
    x, scale = torch.randn(4, 6).double(), nn.Parameter(torch.rand(6).double())
    parameters = [*network.parameters(), scale]

    def loss() -> Tensor:
        y = network(x) * scale + x
        return (y.float().softmax(dim=1) * y[:, :1]).sum() + (scale**2).mean()

    loss().backward()
    expected = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    with fake_card():
        loss().backward()
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
