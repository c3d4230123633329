"""Turns images a second into tokens, arithmetic and the share of what the cards could do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from time import perf_counter

import torch

from train.estimate import cost_of_image
from train.preview import load_of
from train.student import new_network
from train.system import System

CARDS = {
    "A10": 125.0,
    "A30": 165.0,
    "A40": 149.7,
    "A100": 312.0,
    "A800": 312.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H100": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H200": 989.4,
    "H200 NVL": 835.5,
    "H800": 989.4,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.2,
}
"""TFLOP/s of dense bfloat16 matrix products that NVIDIA's data sheets give."""

_SIDE, _LAPS = 8192, 10


@dataclass(frozen=True)
class Speed:
    """What an image of a recipe costs, and what all devices of the run could do."""

    tokens: int
    """Of an image's views, teacher's and student's."""
    flops: float
    """Of an image, as `train.estimate.estimate` counts them."""
    peak: float | None
    """TFLOP/s of matrix products of all processes' cards together; None on a CPU."""

    def rates(self, images_per_second: float) -> dict[str, float]:
        """Return the metrics of a rate of images: tokens/s, TFLOP/s, and their share of the peak."""
        tflops = images_per_second * self.flops / 1e12
        rates = {"tokens_per_second": images_per_second * self.tokens, "tflops": tflops}
        return rates if self.peak is None else {**rates, "peak_share": tflops / self.peak}


def speed_of(system: System) -> Speed:
    """Return the speed of a run, which one process can tell by itself."""
    recipe, ranks = system.recipe, system.ranks
    network = new_network(recipe, device="meta")
    load = load_of(recipe, network, ranks.world, ranks.device)
    _, tokens, flops = cost_of_image(network, load, system.frozen_teacher)
    peak = peak_tflops(ranks.device, system.precision)
    return Speed(
        tokens=sum(tokens.values()),
        flops=flops["in all"],
        peak=None if peak is None else ranks.world * peak,
    )


def peak_tflops(device: torch.device, precision: torch.dtype) -> float | None:
    """Return the most TFLOP/s of a card's matrix products: by its name, else measured; None of a CPU."""
    if device.type != "cuda":
        return None
    named = of_card(torch.cuda.get_device_name(device))
    return named if named and precision == torch.bfloat16 else _measured(device, precision)


def of_card(name: str) -> float | None:
    """Return the TFLOP/s of the longest name of `CARDS` that a card's own has as whole words."""
    known = [card for card in CARDS if re.search(rf"\b{re.escape(card)}\b", name)]
    return CARDS[max(known, key=len)] if known else None


def _measured(device: torch.device, precision: torch.dtype) -> float:
    """Return the TFLOP/s of the best of a few large products, which take some tenths of a second."""
    side = _SIDE if precision == torch.bfloat16 else _SIDE // 2
    one, other, out = torch.randn((3, side, side), device=device, dtype=precision)
    seconds = []
    for _ in range(_LAPS):
        torch.cuda.synchronize(device)
        began = perf_counter()
        torch.mm(one, other, out=out)
        torch.cuda.synchronize(device)
        seconds.append(perf_counter() - began)
    return 2 * side**3 / min(seconds) / 1e12
