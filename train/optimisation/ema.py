"""Moves the teacher after the student, as an exponential moving average of its weights."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from train.distributed.shards import local_shards


@torch.no_grad()
def update_teacher(
    student: nn.Module,
    teacher: nn.Module,
    momentum: float,
    skipped: Bool[Tensor, ""] | None = None,
) -> None:
    """Set every teacher weight to momentum * teacher + (1 - momentum) * student.

    Mean teacher (arXiv 1703.01780), as in DINO (arXiv 2104.14294, section 3.1). To be called
    after the optimiser step with that step's momentum; where `skipped`, which lies on the weights'
    device, says that the step was skipped, they stay, without a question to the device. Buffers
    are copied. `teacher` is a copy of `student`, neither in a wrapper; of DTensors each rank
    updates its own shard.

    Raises TypeError for weights below float32, where a momentum near 1 moves nothing, and where
    one side is sharded and the other not: an FSDP teacher that was not resharded after its
    forward pass would lose the update.
    """
    ours, theirs = list(teacher.parameters()), list(student.parameters())
    for weight, source in zip(ours, theirs, strict=True):
        if weight.dtype.itemsize < 4:
            raise TypeError(f"the teacher's weights are {weight.dtype}, not float32")
        if isinstance(weight, DTensor) != isinstance(source, DTensor):
            raise TypeError("of teacher and student one is sharded and the other is not")
    share = 1 - momentum
    if skipped is not None:
        weights = [skipped.logical_not() * share] * len(ours)
        torch._foreach_lerp_(local_shards(ours), local_shards(theirs), weights)
    else:
        torch._foreach_lerp_(local_shards(ours), local_shards(theirs), share)
    for buffer, values in zip(teacher.buffers(), student.buffers(), strict=True):
        buffer.copy_(values)
