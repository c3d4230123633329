"""Sends tensors to the device that computes with them."""

from __future__ import annotations

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device | str) -> Tensor:
    """Return a host's tensor on a device, without waiting for a card.

    It fetches them by itself from page-locked memory, which torch keeps until it has. A large copy of
    what is not page-locked waits for all that the card was given before.
    """
    device = torch.device(device)
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
