"""The executor of `--executor ray` on a simulated cluster: every unit once, and no idle workers."""

import random
from pathlib import Path

import pytest

from benchmarks.scheduling import draw_bytes, draw_seconds
from benchmarks.simulated_ray import SimulatedRay
from curate.execution.executor import Call
from curate.execution.on_ray import RayExecutor
from curate.stage import EngineSettings, Unit, Workers

PARTS = 3000


@pytest.mark.parametrize("workers", [None, Workers(print)])
def test_a_cluster_that_loses_processes_and_nodes_is_kept_busy(workers):
    ray = SimulatedRay(
        *(10, 4, draw_seconds), dies=0.01, lost_every=600, clock=lambda: 0.0, setup_seconds=20
    )
    drawn = random.Random(0)
    units = [Unit(str(n), (), weight=draw_bytes(drawn)) for n in range(PARTS)]
    calls = [Call(unit, print, Path()) for unit in units]
    with RayExecutor(EngineSettings(), _ray=ray, _joined=True) as executor:
        ended = list(executor.run(calls, workers, gpus=0, waiting=lambda missing: None))
    assert not [outcome for _, outcome in ended if isinstance(outcome, Exception)]
    assert sorted(int(call.unit.name) for call, _ in ended) == list(range(PARTS))
    assert ray.deaths > 30
    assert ray.busy > 0.95 * ray.capacity
