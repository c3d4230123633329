"""The trainer against its limits and against lightly-train; every ratio from one run.

.venv/bin/python benchmarks/train.py step
.venv/bin/python benchmarks/train.py loader
.venv/bin/python benchmarks/train.py lightly --python /path/to/lightly/env/bin/python
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from unittest import mock

import click
import torch
import yaml

# Before the folder of this file, in which `train` is this file and not the package.
sys.path.insert(0, str(Path(__file__).parents[1]))

import train.loop
from benchmarks.memory import run_measured
from benchmarks.multicrop import main as multicrop
from benchmarks.multicrop import photographs
from train.distributed.parallelise import autocast
from train.launch import ALLOCATOR, THREADS
from train.recipe import Recipe, read_recipe
from train.step import MicroBatch
from train.system import System

WARMUP = 3  # first steps that are not counted


def shape(command):
    """Add the options that say what is trained: the same for ours and for lightly-train."""
    options = [
        click.option("--width", default=192),
        click.option("--depth", default=12),
        click.option("--heads", default=3),
        click.option("--patch", default=16),
        click.option("--global-size", default=224),
        click.option("--local-size", default=96),
        click.option("--local-views", default=8),
        click.option("--batch", default=16),
        click.option("--prototypes", default=65_536),
        click.option("--hidden", default=2048),
        click.option("--bottleneck", default=256),
        click.option("--shared-head/--separate-heads", default=False),
        click.option("--centering", type=click.Choice(["sinkhorn", "ema"]), default="sinkhorn"),
        click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32"),
        click.option("--threads", default=2),
        click.option("--workers", default=2),
        click.option("--steps", default=20, help="Of each run."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def recipe_of(chosen: dict) -> dict:
    """Return the recipe that trains what lightly_dinov2.py trains with the same options."""
    head = {name: chosen[name] for name in ("prototypes", "hidden", "bottleneck")}
    return {
        "batch_size": chosen["batch"],
        "group_size": chosen["batch"],
        "epochs": 10,
        "steps": chosen["steps"],
        "data": {"workers": chosen["workers"]},
        "crops": {name: chosen[name] for name in ("global_size", "local_size", "local_views")},
        "masks": {},
        "model": {
            "name": "vit_tiny_patch16_224",
            "patch_size": chosen["patch"],
            "options": {
                "embed_dim": chosen["width"],
                "depth": chosen["depth"],
                "num_heads": chosen["heads"],
            },
            "layer_scale": 1e-5,
        },
        "heads": {"dino": head, "shared": True}
        if chosen["shared_head"]
        else {"dino": head, "ibot": head},
        "objectives": {"centering": {"kind": chosen["centering"]}},
        # lightly-train's frozen prototypes cost it what moving ones do, so ours are not frozen.
        "optimiser": {"base_lr": 4e-3, "warmup_epochs": 1, "freeze_last_layer_epochs": 0},
        "parallel": {"device": "cpu", "precision": chosen["precision"]},
        "checkpoints": {"every": 1_000_000, "keep": 1},
        "log": {"every": 5},
        # Nine times in a run of any length: here that would be every other step.
        "looks": {"times": 0},
    }


def make_images(folder: Path, count: int) -> None:
    """Write `count` JPEGs of 500x375 cut from photographs; the same at every call."""
    folder.mkdir()
    for number, data in enumerate(photographs((500, 375), "JPEG", count)):
        (folder / f"{number:06d}.jpg").write_bytes(data)


@click.group()
def main() -> None:
    """Print images/s, memory and their ratios."""


main.add_command(multicrop, "loader")


@main.command()
@shape
@click.option("--recipe", "name", help="A recipe of pipelines.yaml, in place of these options.")
@click.option("--set", "overrides", multiple=True, help="Override a setting of the recipe.")
@click.option(
    "--clock",
    "clock_name",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    help="cpu: CPU seconds of the training process, which other work on the machine leaves alone.",
)
def step(name: str | None, overrides: Sequence[str], clock_name: str, **chosen) -> None:
    """Compare the whole training loop with what no step can go without.

    After each step of a real run, the same tensors go through the step alone (no data, no
    logging), and through teacher and student alone: teacher forward, student forward and backward
    with heads, no losses, no centering, no optimiser.
    """
    if not ALLOCATOR.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    torch.set_num_threads(chosen["threads"])
    with tempfile.TemporaryDirectory() as folder:
        images, config = Path(folder) / "images", Path(folder) / "recipes.yaml"
        if name is None:
            config.write_text(yaml.safe_dump({"recipes": {"benchmark": recipe_of(chosen)}}))
            recipe = read_recipe(config, "benchmark", overrides)
        else:
            overrides = (*overrides, f"steps={chosen['steps']}")
            recipe = read_recipe(Path("pipelines.yaml"), name, overrides)
        make_images(images, max(320, recipe.batch_size))
        clock = {"wall": time.perf_counter, "cpu": time.process_time}[clock_name]
        laps = _interleaved(recipe, images, Path(folder) / "run", clock)
    for what, seconds in laps.items():
        click.echo(f"{what:22} {recipe.batch_size / statistics.median(seconds):9.2f} images/s")
    for limit in ("the step alone", "forward and backward"):
        ratios = [best / whole for best, whole in zip(laps[limit], laps["the loop"], strict=True)]
        click.echo(f"the loop / {limit}: {statistics.median(ratios):.3f}")


def _interleaved(
    recipe: Recipe, images: Path, out: Path, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Train, and return the seconds on `clock` of each step behind the first few, in three ways.

    The limits come behind the real step: the loader's workers then refill their queue in its time.
    """
    laps: dict[str, list[float]] = {
        "the loop": [], "the step alone": [], "forward and backward": []
    }  # fmt: skip
    real = train.loop.optimiser_step
    left: list[float] = []

    def lap(name: str, system: System, function, *arguments):
        _wait_for(system)
        began = clock()
        result = function(*arguments)
        _wait_for(system)
        laps[name].append(clock() - began)
        return result

    def stepped(system, micro_batches, values, number, counts):
        report = real(system, micro_batches, values, number, counts)
        _wait_for(system)
        if left:  # from the end of the last step, through its logging and this one's data
            laps["the loop"].append(clock() - left.pop())
            lap("the step alone", system, real, system, micro_batches, values, number)
            lap("forward and backward", system, _forward_and_backward, system, micro_batches)
        left[:] = [clock()]
        return report

    with mock.patch("train.loop.optimiser_step", stepped):
        train.loop.train(recipe, str(images), out)
    return {name: seconds[WARMUP:] for name, seconds in laps.items()}


def _forward_and_backward(system: System, micro_batches: Sequence[MicroBatch]) -> None:
    device = system.ranks.device
    # Of the step before: to add to them is no part of a backward pass.
    system.optimiser.zero_grad(set_to_none=True)
    for views in micro_batches:
        with torch.no_grad(), autocast(system.precision, device):
            system.teacher_called(views.global_views, masked_index=views.index).whole()
        with autocast(system.precision, device):
            outputs = system.student_called(
                views.global_views, views.local_views, views.masks, views.index
            )
        logits = outputs.whole()
        # Their own values stand for the gradient of a loss: to make another would be work of a loss.
        torch.autograd.backward(logits, [each.detach() for each in logits])
    system.optimiser.zero_grad(set_to_none=True)


def _wait_for(system: System) -> None:
    if system.ranks.device.type == "cuda":
        torch.cuda.synchronize(system.ranks.device)


@main.command()
@shape
@click.option("--python", required=True, help="Of an environment with lightly-train.")
@click.option("--rounds", default=3)
@click.option(
    "--allocator",
    type=click.Choice(["own", "same"]),
    default="own",
    help="own: ours as lvd-train starts itself, lightly-train as it is; same: ours for both.",
)
def lightly(python: str, rounds: int, allocator: str, **chosen) -> None:
    """Run ours and lightly-train's dinov2 method in turns: same model, crops, batch, prototypes."""
    click.echo(f"{chosen}, allocator {allocator}")
    results: dict[str, list[dict]] = {"ours": [], "lightly-train": []}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        make_images(images, chosen["batch"] * chosen["steps"])
        for number in range(rounds):
            runs = {
                "ours": lambda n=number: _ours(chosen, images, Path(folder) / f"run-{n}"),
                "lightly-train": lambda: _lightly(python, chosen, images, allocator),
            }
            for name in sorted(runs, reverse=number % 2 == 1):
                result = runs[name]()
                results[name].append(result)
                click.echo(
                    f"round {number} {name:14} {result['images_per_second']:7.2f} images/s, "
                    f"{result['cpu_seconds']:.2f} CPU seconds a step, "
                    f"waits {result['wait']:.1%}, {result['process']:.0f} MiB and "
                    f"{result['others']:.0f} MiB of workers"
                )

    def ratio(value) -> float:
        pairs = zip(results["ours"], results["lightly-train"], strict=True)
        return statistics.median(value(ours) / value(theirs) for ours, theirs in pairs)

    click.echo(
        f"ours / lightly-train (median of {rounds}): images/s "
        f"{ratio(lambda run: run['images_per_second']):.3f}, images per CPU second of the training "
        f"process {ratio(lambda run: 1 / run['cpu_seconds']):.3f}, memory "
        f"{ratio(lambda run: run['process'] + run['others']):.3f}"
    )


def _environment(chosen: dict) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "LD_PRELOAD"))}
    return kept | {"OMP_NUM_THREADS": str(chosen["threads"])}


def _ours(chosen: dict, images: Path, out: Path) -> dict:
    """Return images/s of the steady steps: the median over the lines of metrics but the first."""
    config = out.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({"recipes": {"benchmark": recipe_of(chosen)}}))
    command = [sys.executable, __file__, "timed", str(config), str(images), str(out)]
    done = run_measured(command, _environment(chosen) | ALLOCATOR | {THREADS: "PASSIVE"})
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steady = [line for line in lines if "images_per_second" in line][1:]
    return {
        "images_per_second": statistics.median(line["images_per_second"] for line in steady),
        "cpu_seconds": json.loads(done.stdout.splitlines()[-1]),
        "wait": statistics.median(line["data_wait"] for line in steady),
        "process": done.process,
        "others": done.others,
    }


@main.command(hidden=True)
@click.argument("config", type=Path)
@click.argument("images")
@click.argument("out", type=Path)
def timed(config: Path, images: str, out: Path) -> None:
    """Train as lvd-train does; the last line is the median CPU seconds of this process a step."""
    ends: list[float] = []
    real = train.loop.optimiser_step

    def stepped(*arguments):
        report = real(*arguments)
        ends.append(time.process_time())
        return report

    with mock.patch("train.loop.optimiser_step", stepped):
        train.loop.train(read_recipe(config, "benchmark", []), images, out)
    steps = [later - earlier for earlier, later in pairwise(ends[WARMUP:])]
    click.echo(statistics.median(steps))


def _lightly(python: str, chosen: dict, images: Path, allocator: str) -> dict:
    command = [python, str(Path(__file__).with_name("lightly_dinov2.py")), "--images", str(images)]
    command += ["--warmup", str(WARMUP)]
    command.append("--shared-head" if chosen["shared_head"] else "--separate-heads")
    for name, value in chosen.items():
        if name != "shared_head":
            command += [f"--{name.replace('_', '-')}", str(value)]
    environment = _environment(chosen) | (ALLOCATOR if allocator == "same" else {})
    done = run_measured(command, environment)
    result = json.loads(done.stdout.splitlines()[-1])
    return {
        "images_per_second": result["images_per_second"],
        "cpu_seconds": result["cpu_seconds"],
        "wait": result["wait_seconds"] / result["step_seconds"],
        "process": done.process,
        "others": done.others,
    }


if __name__ == "__main__":
    main()
