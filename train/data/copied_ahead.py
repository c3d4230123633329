"""Copies the next step's batch to a card while a step is computed there."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from train.data.loader import Batch


def copied_ahead(steps: Iterator[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """Yield the micro-batches of each step, on a card already where `device` is one.

    The next ones are asked for when these have been used: what the device was given by then it
    computes while they are copied, from page-locked memory on a stream of their own. Elsewhere they
    are yielded as they come.
    """
    if device.type != "cuda":
        yield from steps
        return
    computing, copying = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    for step in steps:
        with torch.cuda.stream(copying):
            there = [batch.to(device) for batch in step]
        computing.wait_stream(copying)
        for batch in there:
            for tensor in batch.tensors().values():
                tensor.record_stream(computing)  # else its memory could be given out too early
        yield there
