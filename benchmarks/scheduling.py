"""How busy the engine keeps a cluster: simulated, and with units that do nothing on a real Ray.

    .venv/bin/python -m benchmarks.scheduling simulate [--parts 120000] [--nodes 50] [--processors 20]
    .venv/bin/python -m benchmarks.scheduling real [--units 20000]

`simulate` runs the executor of `--executor ray` on a Ray of drawn durations (`simulated_ray.py`):
parts of half a minute (their bytes and the seconds for a byte are log-normal), processes that die, and every ten
minutes a node that is gone for five. `busy` is the time of workers at units, of the time that
workers were there; `driver` is the share of the run in which the driver had something to do.
"""

from __future__ import annotations

import random
import resource
import tempfile
import time
from pathlib import Path

import click

from benchmarks.simulated_ray import SimulatedRay
from curate.execution.executor import Call
from curate.execution.on_ray import RayExecutor
from curate.execution.session import open_runner
from curate.stage import EngineSettings, Stage, Unit, Workers

WAIT_SECONDS = 0.5e-6
"""Of a real `ray.wait` for each reference; `real` prints it."""


@click.group()
def main() -> None:
    """Measure the engine."""


@main.command()
@click.option("--parts", default=120_000, show_default=True)
@click.option("--nodes", default=50, show_default=True)
@click.option("--processors", default=20, show_default=True, help="Of a node.")
def simulate(parts: int, nodes: int, processors: int) -> None:
    """Run units of drawn durations on simulated workers, as tasks and as actors with a setup."""
    click.echo(f"{parts:,} parts, {nodes * processors:,} workers on {nodes} nodes")
    for name, workers in (("tasks", None), ("actors", Workers(print))):
        ray = SimulatedRay(
            *(nodes, processors, draw_seconds),
            dies=0.001,
            lost_every=600,
            wait_seconds=WAIT_SECONDS,
        )
        executor = RayExecutor(EngineSettings(), _ray=ray, _joined=True)
        began = time.perf_counter()
        drawn = random.Random(1)
        calls = [
            Call(Unit(f"{n:06d}", (), weight=draw_bytes(drawn)), print, Path())
            for n in range(parts)
        ]
        done = 0
        with executor:
            for _, outcome in executor.run(calls, workers, gpus=0, waiting=lambda missing: None):
                if isinstance(outcome, Exception):
                    raise outcome
                done += 1
        assert done == parts
        click.echo(
            f"{name:7} {ray.now:8,.0f} s simulated, busy {ray.busy / ray.capacity:.3f}, "
            f"driver {ray.driver / ray.now:.3f}, {ray.deaths:,} deaths; {done:,} done once each; "
            f"{time.perf_counter() - began:.0f} s here, peak {peak_mib():,.0f} MiB"
        )


@main.command()
@click.option("--units", default=20_000, show_default=True)
def real(units: int) -> None:
    """Run units that do nothing on a Ray of this machine."""
    stage = Stage("scheduling", 1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        with open_runner(work, EngineSettings(), "ray") as runner, runner.at_work("start"):
            runner.map(do_nothing, [Unit("first", ())])
            for name in ("no commit", "commit"):
                made = [Unit(f"{n:06d}", ()) for n in range(units)]
                began = time.perf_counter()
                if name == "commit":
                    runner.run(stage, commit_nothing, made)
                else:
                    runner.map(do_nothing, made)
                seconds = time.perf_counter() - began
                click.echo(f"{name:9} {units / seconds:8,.0f} units/s, peak {peak_mib():,.0f} MiB")
            click.echo(f"ray.wait  {measure_wait() * 1e6:8.2f} us for a reference")


def draw_bytes(drawn: random.Random) -> int:
    """Return the bytes of a part: log-normal with a mean of 30 MB."""
    return round(30e6 * drawn.lognormvariate(-0.18, 0.6))


def draw_seconds(drawn: random.Random, call: Call) -> float:
    """Return the seconds of a part: one a megabyte, within a factor of some two."""
    return call.unit.weight / 1e6 * drawn.lognormvariate(-0.08, 0.4)


def do_nothing(scratch: Path) -> dict:
    """Be a unit without work."""
    return {}


def commit_nothing(out: Path) -> dict:
    """Be a unit without work whose result is committed."""
    return {}


def measure_wait(count: int = 2000, repeats: int = 50) -> float:
    """Return the seconds of `ray.wait` for each of `count` references that are not there yet."""
    import ray

    @ray.remote
    def sleep() -> None:
        time.sleep(60)

    references = [sleep.remote() for _ in range(count)]
    began = time.perf_counter()
    for _ in range(repeats):
        ray.wait(references, num_returns=1, timeout=0)
    seconds = time.perf_counter() - began
    for reference in references:
        ray.cancel(reference, force=True)
    return seconds / repeats / count


def peak_mib() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
