"""Records some steps of a run for torch's viewers: a trace, and on a card a snapshot of its memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from shared.progress import say
from train.distributed.ranks import Ranks

Step = TypeVar("Step")

MOST_EVENTS = 1_000_000
"""Allocations that a snapshot keeps."""


def record_steps(
    batches: Iterator[Step], begun: int, steps: range | None, folder: Path, ranks: Ranks
) -> Iterator[Step]:
    """Yield the batches of the steps from `begun` on; record those of `steps`, their waiting included.

    Each process writes `folder/trace-RANK.json.gz` (chrome://tracing, Perfetto), on a card also
    `folder/memory-RANK.pickle` (pytorch.org/memory_viz), once the last of the steps is done or the
    run is stopped before.
    """
    if steps is None:
        yield from batches
        return
    recorder: _Recorder | None = None
    step = begun
    try:
        while True:
            if step == steps.start:
                recorder = _Recorder(folder, ranks)
            if step == steps.stop and recorder is not None:
                recorder.write()
                recorder = None
            following = next(batches, None)
            if following is None:
                return
            yield following
            step += 1
    finally:
        if recorder is not None:
            recorder.write()


class _Recorder:
    """A profile that is being recorded."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._folder, self._ranks = folder, ranks
        self._on_card = ranks.device.type == "cuda"
        activities = [ProfilerActivity.CPU]
        if self._on_card:
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS)
        self._profile = profile(activities=activities, record_shapes=True, profile_memory=True)
        self._profile.start()

    def write(self) -> None:
        """Stop, and write what was recorded."""
        if self._on_card:
            torch.cuda.synchronize(self._ranks.device)
        self._profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"trace-{self._ranks.rank}.json.gz"
        self._profile.export_chrome_trace(str(trace))
        if self._on_card:
            snapshot = self._folder / f"memory-{self._ranks.rank}.pickle"
            torch.cuda.memory._dump_snapshot(str(snapshot))
            torch.cuda.memory._record_memory_history(enabled=None)
        if self._ranks.first:
            say(f"profile: {trace}")
