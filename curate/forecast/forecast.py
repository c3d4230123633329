"""What a run over so many images would take on so many nodes: storage, memory, requests, time, cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from curate.catalogue.collection import block_size
from curate.forecast.constants import Constants, EmbedderCost, UnitCost, evaluate, quantities
from curate.neighbours.heads import MANY
from curate.retrieval.nearest_seeds import IN_CLUSTERS
from curate.retrieval.seed_index import auto_clusters
from shared.errors import LvdError

PART = 10_000
"""Images of a part: a shard of img2dataset."""
SHARD = 1_000
"""Images of an output shard."""
GIB = 2**30
WITH_DIMENSIONS = ("cluster", "dedup", "retrieve")
"""Stages whose costs grow with the dimensions of a vector; of the others, dimensions hardly matter."""
STORED_WITH_DIMENSIONS = ("cluster",)
ORDER = ("embed", "catalogue", "cluster", "dedup", "retrieve", "select", "export", "report")
FACTS_FILES, VECTORS_FILES = 2, 3
"""Of a part, with their manifests."""
LONG = 0.5
"""Share of a run's time in one process from which more nodes are said to be of little use."""


@dataclass(frozen=True)
class Asked:
    """A run, and where it would be."""

    images: float
    dim: int
    embedder: EmbedderCost
    seeds: float
    image_bytes: float
    kept: float
    """Share of the images."""
    looks: float
    """`dedup.looks`, or where that is `auto` what the first round takes."""
    exact: float
    """`retrieve.index.exact`"""
    probes: int
    """`retrieve.index.probes`"""
    nodes: int
    cores: int
    memory: float
    """Bytes of a node."""
    gpus: int
    """Of a node."""
    price: float | None
    """Of a node and hour."""

    @property
    def workers(self) -> int:
        """Processes at a time: one for each core."""
        return self.nodes * self.cores


@dataclass
class StageForecast:
    """What a stage takes."""

    name: str
    units: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    seconds: float = 0.0
    """From its start to its end."""
    alone_s: float = 0.0
    """Of these, while one process works and all others wait."""
    stored: float = 0.0
    """Bytes that it leaves in the work folder or in the result."""
    unit_memory: float = 0.0
    """Bytes of one of the many units that run side by side."""
    reduce_memory: float = 0.0
    """Bytes of the largest unit that runs alone."""
    reduce: str = ""
    """Its name."""
    puts: float = 0.0
    gets: float = 0.0
    process: float = 0.0
    """Bytes that each process holds before its first unit."""
    problems: list[str] = field(default_factory=list)

    def node_memory(self, asked: Asked) -> float:
        """Return the bytes that a node needs for it."""
        side_by_side = asked.cores * (self.process + self.unit_memory)
        return max(side_by_side, self.process + self.reduce_memory)


def forecast(constants: Constants, asked: Asked) -> list[StageForecast]:
    """Return what each stage takes, in the order of a run, with what does not fit."""
    stages = {name: _of_units(constants, name, asked) for name in constants.units}
    stages["embed"] = _embed(constants, asked)
    stages["export"] = _export(constants, asked)
    _add_torch(stages["dedup"], constants, asked)
    _add_looks(stages["dedup"], constants, asked)
    _add_seeds(stages["retrieve"], constants, asked)
    ordered = [stages[name] for name in ORDER if name in stages]
    _add_processes(ordered, constants, asked)
    _find_problems(ordered, asked)
    return ordered


def _of_units(constants: Constants, name: str, asked: Asked) -> StageForecast:
    stage = StageForecast(name)
    for function, cost in constants.units[name].items():
        _add(stage, function, cost, asked.images, constants, asked)
    return stage


def _add(
    stage: StageForecast,
    function: str,
    cost: UnitCost,
    images: float,
    constants: Constants,
    asked: Asked,
    cut_into: int | None = None,
) -> None:
    """Add all units of one kind, for so many images, to a stage; `cut_into` as `quantities` has it."""
    known = cost.quantities(images, asked.kept * images, cut_into)
    wider = asked.dim / constants.dim
    units = max(1.0, evaluate(cost.units, known))
    cpu_s = evaluate(cost.cpu_s, known) * (wider if stage.name in WITH_DIMENSIONS else 1)
    memory = evaluate(cost.memory, known) * (wider if stage.name in WITH_DIMENSIONS else 1)
    stage.units += units
    stage.cpu_s += cpu_s
    stage.stored += evaluate(cost.bytes, known) * (
        wider if stage.name in STORED_WITH_DIMENSIONS else 1
    )
    stage.puts += evaluate(cost.puts, known)
    stage.gets += evaluate(cost.gets, known)
    if cost.is_reduce():
        stage.seconds += cpu_s
        stage.alone_s += cpu_s
        if memory > stage.reduce_memory:
            stage.reduce_memory, stage.reduce = memory, function
    else:
        stage.seconds += cpu_s / min(asked.workers, units)
        stage.unit_memory = max(stage.unit_memory, memory)


def _embed(constants: Constants, asked: Asked) -> StageForecast:
    """Return decoding on the processors, and the forward pass there or on cards at the same time."""
    parts, cost = asked.images / PART, asked.embedder
    workers = min(asked.workers, max(1.0, parts))
    stage = StageForecast("embed", units=parts, cpu_s=asked.images * cost.decode_s)
    if asked.gpus:
        if cost.gpu_rate is None:
            raise LvdError(
                "--gpus: nobody has measured this embedder on a card: say --gpu-rate IMAGES/S, or "
                "leave --gpus out"
            )
        stage.gpu_s = asked.images / cost.gpu_rate
        stage.seconds = max(stage.cpu_s / workers, stage.gpu_s / (asked.nodes * asked.gpus))
    else:
        stage.cpu_s += asked.images * cost.forward_s
        stage.seconds = stage.cpu_s / workers
    stage.stored = asked.images * (constants.facts_bytes + 2 * asked.dim + 1)
    stage.puts, stage.gets = parts * (FACTS_FILES + VECTORS_FILES), parts
    return stage


def _export(constants: Constants, asked: Asked) -> StageForecast:
    """Return laying down what is known of the kept images, and writing them to shards."""
    stage = _of_units(constants, "export", asked)
    kept = asked.images * asked.kept
    cpu_s = kept * constants.export_s
    shards, parts = max(1.0, kept / SHARD), asked.images / PART
    stage.units += shards
    stage.cpu_s += cpu_s
    stage.seconds += cpu_s / min(asked.workers, shards)
    stage.stored = kept * asked.image_bytes  # what is laid down is removed behind the last shard
    stage.puts += 3 * shards
    stage.gets += parts + kept
    return stage


def _add_torch(stage: StageForecast, constants: Constants, asked: Asked) -> None:
    """Add that processes import torch, where they compare so many that it pays."""
    if _compares_many(asked):
        stage.cpu_s += constants.torch_s * min(asked.workers, stage.units)
        stage.seconds += constants.torch_s


def _compares_many(asked: Asked) -> bool:
    return quantities(asked.images)["images x compared"] >= MANY


def _add_processes(stages: list[StageForecast], constants: Constants, asked: Asked) -> None:
    """Say what a process of each stage holds: torch, once it was imported, to the end."""
    has_torch = asked.embedder.torch
    for stage in stages:
        has_torch |= stage.name == "dedup" and _compares_many(asked)
        stage.process = constants.process + (constants.torch_bytes if has_torch else 0)


def _add_looks(stage: StageForecast, constants: Constants, asked: Asked) -> None:
    cpu_s = asked.images * asked.looks * constants.look_s
    stage.cpu_s += cpu_s
    stage.seconds += cpu_s / asked.workers
    stage.gets += 2 * asked.images * asked.looks


def _add_seeds(stage: StageForecast, constants: Constants, asked: Asked) -> None:
    """Add what more seed images take than those that the stage was measured with."""
    wider = asked.dim / constants.dim
    if asked.seeds > asked.exact:
        clusters = auto_clusters(int(asked.seeds))
        for function, cost in constants.units["cluster"].items():
            _add(stage, function, cost, asked.seeds, constants, asked, clusters)
        compared = min(asked.seeds, clusters + asked.probes * asked.seeds / clusters)
        blocks = asked.images / max(IN_CLUSTERS, block_size(int(asked.images)))
        made = max(1.0, blocks) * asked.seeds
    else:
        compared, made = asked.seeds, 0.0
    cpu_s = asked.images * (compared - constants.seeds) * constants.pair_s * wider
    cpu_s += made * constants.unit_s * wider
    cpu_s = max(cpu_s, -stage.cpu_s / 2)  # fewer seed images than were measured save little
    stage.cpu_s += cpu_s
    stage.seconds += cpu_s / asked.workers


def bytes_on_store(stages: list[StageForecast]) -> tuple[float, float]:
    """Return what a node keeps, and what the machine of the command does, where all is on a store.

    Of the clusters and what dedup makes of them a node fetches each file whole that it reads from, and
    fetches again what `engine.copy_bytes` had no room for. The result passes through the machine of the
    command.
    """
    stored = {stage.name: stage.stored for stage in stages}
    return stored["cluster"] + stored["dedup"], stored["export"] + stored["report"]


def _find_problems(stages: list[StageForecast], asked: Asked) -> None:
    """Say of each stage what does not fit, and what would."""
    seconds = sum(stage.seconds for stage in stages)
    for stage in stages:
        free = asked.memory - stage.process
        if stage.reduce_memory > free:
            need = (stage.process + stage.reduce_memory) / GIB
            pieces = -(-stage.reduce_memory // max(1.0, free))
            stage.problems.append(
                f"`{stage.reduce}` needs {need:,.0f} GiB in one process, and a node has "
                f"{asked.memory / GIB:,.0f}: one node of more memory, or {pieces:.0f} crawls of "
                "which each run holds out the kept images of the others"
            )
        fitting = int(asked.memory // (stage.process + stage.unit_memory))
        if fitting < 1:
            stage.problems.append(
                f"a unit needs {stage.unit_memory / GIB:,.1f} GiB, more than a node has: nodes of "
                "more memory, or several crawls"
            )
        elif fitting < asked.cores:
            stage.problems.append(
                f"{asked.cores} processes of {stage.unit_memory / GIB:,.1f} GiB do not fit into a "
                f"node: engine.workers={fitting * asked.nodes}, or nodes of "
                f"{asked.cores * (stage.process + stage.unit_memory) / GIB:,.0f} GiB"
            )
        if stage.alone_s > LONG * seconds and stage.alone_s > 3600:
            stage.problems.append(
                f"{stage.alone_s / 3600:,.1f} of {seconds / 3600:,.1f} hours pass in one process, "
                "which more nodes do not shorten: "
                + _REMEDIES.get(stage.name, "fewer images a run")
            )
        elif stage.units < asked.workers and stage.seconds - stage.alone_s > 3600:
            stage.problems.append(
                f"its {stage.units:,.0f} units keep no more than as many of {asked.workers:,} "
                "processes busy"
            )


_REMEDIES = {
    "cluster": "fewer cluster.clusters, cluster.points_per_cluster or cluster.iterations",
    "dedup": "dedup.hash, which leaves fewer images to the search, or several crawls",
    "select": "several crawls",
}
