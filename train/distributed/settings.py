"""What a recipe may say of its processes, devices and precision."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ParallelSettings(BaseModel):
    """How a run uses its processes; nothing here changes what is learned, but for rounding."""

    model_config = ConfigDict(extra="forbid")

    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto"
    """`ddp` keeps the networks whole in every process, `fsdp` a share of them in each, `hsdp` a
    share of them in each of a group of processes, and a copy in each group; `auto` is `ddp`. One
    process alone needs none of them, whatever this says."""
    shard_group: int | None = Field(None, ge=1)
    """Processes that share a copy under `hsdp`; by default those of one machine."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; weights, their moments and the teacher's average are float32 always."""
    compile: bool = False
    """torch.compile each block: the first step then takes minutes, the others less."""
    activation_checkpointing: bool | Literal["selective"] = False
    """Compute each block of the student again in the backward pass: a third more time, and the
    memory of one block instead of all. `selective` keeps what its linear layers and fused attention
    gave and computes the rest again: no product twice, and by estimate half of the memory."""
    timeout: float = Field(1800, gt=0)
    """Seconds that a process waits for the others in a step before the run is given up. After half of
    them OUT/hang-RANK.txt says where each process is."""

    @property
    def sharded(self) -> bool:
        """Whether several processes each hold a share of the networks."""
        return self.strategy in ("fsdp", "hsdp")
