"""A forecast in a table, and as JSON; and the embedder that it is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from curate.forecast.constants import Constants, EmbedderCost
from curate.forecast.forecast import GIB, Asked, StageForecast, bytes_on_store
from curate.settings import PipelinesFile, with_bundled
from shared.config import expand, load_yaml, validate
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError, nearest
from shared.progress import WIDTH

FAR = 4
"""Times the largest measured crawl, from which a forecast says how far it reaches beyond."""


def embedder_cost(constants: Constants, name: str, gpu_rate: float | None) -> EmbedderCost:
    """Return what an embedder costs; LvdError where nobody has measured it."""
    known = constants.embedders
    if name not in known:
        raise LvdError(
            f"--embedder {name}: nobody has measured it{nearest(name, known)}: name one of "
            f"{', '.join(sorted(known))}, or say --calibrate"
        )
    return (
        known[name] if gpu_rate is None else known[name].model_copy(update={"gpu_rate": gpu_rate})
    )


def find_embedder(config: Path, name: str) -> EmbedderSettings:
    """Return an embedder of the configuration; LvdError where there is none of that name."""
    embedders = with_bundled(load_yaml(config)).get("embedders") or {}
    if name not in embedders:
        raise LvdError(
            f"--embedder {name}: {config} has none of that name{nearest(name, embedders)}: it has "
            f"{', '.join(sorted(embedders))}"
        )
    file = validate(PipelinesFile, {"embedders": {name: expand(embedders[name])}}, file=config)
    return file.embedders[name]


def table(stages: Sequence[StageForecast], constants: Constants, asked: Asked) -> str:
    """Return the forecast for people."""
    console = Console(width=WIDTH, highlight=False, markup=False, emoji=False)
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    shown.add_column("stage", no_wrap=True)
    cards = asked.gpus > 0
    columns = ["units", "cpu h", *(["gpu h"] if cards else []), "hours", "alone", "GB", "node GiB"]
    columns += ["puts", "gets", *(["cost"] if asked.price is not None else [])]
    for name in columns:
        shown.add_column(name, justify="right", no_wrap=True)
    for stage in stages:
        shown.add_row(stage.name, *_cells(stage, constants, asked))
    whole = add_up(stages, asked)
    shown.add_row("in all", *_cells(whole, constants, asked), style="bold")
    with console.capture() as caught:
        console.print(shown)
        for stage in stages:
            for problem in stage.problems:
                console.print(f"\n{stage.name}: {problem}", soft_wrap=True)
        if not any(stage.problems for stage in stages):
            console.print("\neverything fits")
        node, command = (f"{size / 1e9:,.1f} GB" for size in bytes_on_store(list(stages)))
        console.print(
            f"\non a store with nodes that share nothing else, TMPDIR needs {node} on every node (and "
            "engine.copy_bytes as much, else files are fetched again and again), and on the machine of "
            f"the command {command} for the result, which passes through it; the time of the network is "
            "not counted",
            soft_wrap=True,
        )
        console.print(f"\n{describe(constants, asked)}", soft_wrap=True)
    return "\n".join(line.rstrip() for line in caught.get().splitlines())


def _cells(stage: StageForecast, constants: Constants, asked: Asked) -> list[str]:
    cells = [_short(stage.units), _hours(stage.cpu_s)]
    cells += [_hours(stage.gpu_s)] if asked.gpus else []
    cells += [_hours(stage.seconds), _hours(stage.alone_s), f"{stage.stored / 1e9:,.1f}"]
    cells += [f"{stage.node_memory(asked) / GIB:,.1f}"]
    cells += [_short(stage.puts), _short(stage.gets)]
    return cells + ([f"{cost_of(stage, asked):,.2f}"] if asked.price is not None else [])


def cost_of(stage: StageForecast, asked: Asked) -> float:
    """Return the price of all nodes while a stage lasts."""
    return (asked.price or 0.0) * asked.nodes * stage.seconds / 3600


def add_up(stages: Sequence[StageForecast], asked: Asked) -> StageForecast:
    """Return all stages as one: sums, and the memory of the one that needs most."""
    whole = StageForecast("in all")
    for stage in stages:
        for name in ("units", "cpu_s", "gpu_s", "seconds", "alone_s", "stored", "puts", "gets"):
            setattr(whole, name, getattr(whole, name) + getattr(stage, name))
    most = max(stages, key=lambda stage: stage.node_memory(asked))
    whole.process, whole.unit_memory = most.process, most.unit_memory
    whole.reduce_memory = most.reduce_memory
    return whole


def describe(constants: Constants, asked: Asked) -> str:
    """Return what a forecast stands on, and how far it reaches beyond what was measured."""
    largest = max(constants.sizes)
    said = (
        f"measured on {constants.machine} at {', '.join(f'{size:,}' for size in constants.sizes)} "
        "images; calibration, false copies, holdouts, balance and top-up are not counted, every image "
        "counts as embedded (embed.once=hash embeds fewer), and looks at pixels as one round"
    )
    if asked.images > FAR * largest:
        said += (
            f". {asked.images / largest:,.0f} times the largest that was measured: stages whose work "
            "grows faster than the images are the least certain"
        )
    return said


def as_dict(stages: Sequence[StageForecast], constants: Constants, asked: Asked) -> dict[str, Any]:
    """Return the forecast, JSON-able: seconds, bytes, numbers of files."""
    rows = {
        stage.name: {
            "units": round(stage.units),
            "cpu_s": stage.cpu_s,
            "gpu_s": stage.gpu_s,
            "seconds": stage.seconds,
            "alone_s": stage.alone_s,
            "stored_bytes": round(stage.stored),
            "node_memory_bytes": round(stage.node_memory(asked)),
            "puts": round(stage.puts),
            "gets": round(stage.gets),
            "cost": None if asked.price is None else cost_of(stage, asked),
            "problems": stage.problems,
        }
        for stage in (*stages, add_up(stages, asked))
    }
    node, command = map(round, bytes_on_store(list(stages)))
    said = {"machine": constants.machine, "sizes": constants.sizes, "images": asked.images}
    said |= {"store": {"node_bytes": node, "command_bytes": command}}
    return {**said, "dim": asked.dim, "seeds": asked.seeds, "nodes": asked.nodes, "stages": rows}


def _short(count: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:.0f}"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2f}"
