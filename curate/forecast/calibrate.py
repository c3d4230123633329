"""Measures the constants of a forecast on this machine, with made-up crawls of three sizes or more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from curate.dedup.near import DedupSettings, count_compared, count_probes
from curate.execution.output import versions
from curate.execution.session import open_runner
from curate.forecast.constants import COUNTED, KEPT, Constants, UnitCost, fit, quantities
from curate.forecast.embedder import machine, measure_embedder
from curate.forecast.exported import draw_crawl, export, keep_all
from curate.forecast.made import Made, make
from curate.forecast.measure import MeasuringExecutor, Taken
from curate.forecast.stages import RELEVANT, STAGES, lay_kept, select, take_through
from curate.forecast.stages import Taken as Found
from curate.neighbours.cluster import ClusterSettings, count_clusters
from curate.neighbours.heads import MANY, expect_products
from curate.neighbours.search import top_k, unit, use_threads
from curate.stage import EngineSettings, Runner
from shared.embedders.settings import EmbedderSettings
from shared.progress import say

SEEDS = 1_000
COMPARED = 4_096, 65_536
"""Images and seed images whose comparison is timed."""
REPETITIONS = 2
"""Of each size; of each unit the one that took least CPU counts: other jobs of a machine add to it."""
EVERYTHING = -1.0
"""The threshold of retrieval that keeps every image but copies."""
LARGER = 4
"""A crawl is cut and searched as one of so many times the largest size, too."""
EXPORTED, EXPORT_REPETITIONS = 1_000, 5
"""Images that are written to a shard to time that, and how often."""

Kind = tuple[str, str]
More = tuple[dict[str, float], Taken]
"""The quantities of a crawl, and what units took of it."""

_TERMS = {
    "bytes": ("one", "clusters", "images"),
    "gets": ("one", "blocks", "blocks x blocks"),
}
_OF_MAPS = {
    "units": ("blocks",),
    "cpu_s": ("images",),
    "puts": ("one", "blocks"),
    # blocks grow only beyond the sizes that are measured: what a unit of one holds is put down to it
    "memory": ("block",),
}
_COMPARING = {
    "assign": ("images x centroids",),
    "ask": ("images x ranked", "made x made"),
    "follow_leaders": ("images x leaders",),
    "search": ("images x compared",),
    "find_pairs": ("images x compared",),
}
"""What the comparisons grow with, of the maps that compare an image with more in a larger crawl. Where
units count them, their cost is fitted to what they count, and that to the quantity. What choosing
clusters takes for each of its own, whose neighbours it looks up, grows with these alone. Other maps take
as long for each image: a growth that is fitted to them is that of the other jobs of a machine."""
_CHOOSING, _SEARCHING = ("assign", "ask"), ("search", "find_pairs")
"""Of these, those that grow with the clusters, and those that grow with what is searched in them."""
_KEEPING = ("select", "sort_facts", "gather_facts")
"""What works on the images that go out. A made-up crawl keeps about the root of its images, and is
measured once more where it keeps all: else what these take is told from neither of the two."""
_OF_KEPT = ("cpu_s", "bytes")
_OF_REDUCES = {
    "units": ("one",),
    "cpu_s": ("one", "clusters", "images"),
    "puts": ("one",),
    "memory": ("one", "clusters", "images"),
}


def calibrate(
    known: Constants, sizes: Sequence[int], embedder: tuple[str, EmbedderSettings], work: Path
) -> Constants:
    """Return constants of this machine: of the stages behind embed, and of one embedder.

    What looks take, and what other embedders do, stays as `known`. Runs on one thread, below `work`,
    of which it needs 2.5 kB an image for a while.
    """
    use_threads(1)
    fresh = _measure_process()
    expect_products(MANY)  # every size by the products of a large crawl
    measured: list[Measured] = []
    name, settings = embedder
    say(f"measuring the embedder {name}")
    facts, cost = measure_embedder(settings, work)
    for images in sizes:
        measured.append(_measure(images, work))
    larger = _as_larger(sizes[1], LARGER * sizes[-1], work)
    kinds = sorted({kind for each in measured for kind in each.taken})
    units: dict[str, dict[str, UnitCost]] = {}
    for stage, function in kinds:
        taken = [each.taken.get((stage, function), Taken()) for each in measured]
        compared = _COMPARING.get(function, ()) if stage != "retrieve" else ()
        more: list[More] = []
        kept: list[int] = []
        if compared and (stage, function) in larger:
            more.append(larger[stage, function])
        if function in _KEEPING:
            kept = [each.kept for each in measured]
            more += [
                (quantities(size) | {KEPT: each.most}, each.everything[stage, function])
                for size, each in zip(sizes, measured, strict=True)
            ]
        units.setdefault(stage, {})[function] = fit_units(sizes, taken, compared, more, kept)
    return known.model_copy(
        update={
            "machine": machine(),
            "versions": versions(),
            "sizes": list(sizes),
            "dim": 384,
            "seeds": SEEDS,
            "pair_s": _time_pairs(),
            "unit_s": _time_units(),
            "export_s": _time_export(work),
            **fresh,
            "facts_bytes": facts,
            "embedders": {**known.embedders, name: cost},
            "units": units,
        }
    )


@dataclass(frozen=True)
class Measured:
    """What the units of each kind took of a crawl."""

    taken: dict[Kind, Taken]
    kept: int
    """Images that went out."""
    everything: dict[Kind, Taken]
    """What was taken once more by the units that work on these, where all but copies went out."""
    most: int
    """As many as these were."""


def _measure(
    images: int,
    work: Path,
    last: str = STAGES[-1],
    cut: ClusterSettings | None = None,
    probes: int | Literal["auto"] = "auto",
) -> Measured:
    """Return what the units of each kind took, of the stages up to `last`."""
    say(f"measuring a made-up crawl of {images:,} images")
    repeated = [_measure_once(images, work, last, cut, probes) for _ in range(REPETITIONS)]
    taken, everything = (
        _least([getattr(each, of) for each in repeated]) for of in ("taken", "everything")
    )
    return replace(repeated[0], taken=taken, everything=everything)


def _as_larger(images: int, larger: int, work: Path) -> dict[Kind, More]:
    """Return what comparing maps take of a crawl that is cut and searched as a larger one.

    Once into as many clusters, and once into as large ones: what a larger crawl takes for an image
    then lies between what was measured, in place of far beyond it.
    """
    clusters = count_clusters(larger, ClusterSettings())
    probes = count_probes(count_compared(larger), clusters, larger)
    found: dict[Kind, More] = {}
    for functions, cut_into, last in (
        (_CHOOSING, min(clusters, images), "dedup"),
        (_SEARCHING, max(1, round(clusters * images / larger)), STAGES[-1]),
    ):
        cut = ClusterSettings(clusters=cut_into)
        taken = _measure(images, work, last, cut, probes).taken
        known = quantities(images, cut_into)
        found |= {kind: (known, each) for kind, each in taken.items() if kind[1] in functions}
    return found


def _measure_once(
    images: int,
    work: Path,
    last: str,
    cut: ClusterSettings | None,
    probes: int | Literal["auto"],
) -> Measured:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        home = Path(folder).resolve()
        with open_runner(home, EngineSettings(), "inline") as runner:
            runner.executor = measuring = MeasuringExecutor(home)
            made = make(runner, images, SEEDS)
            settings = DedupSettings(looks=0, probes=probes)
            found = take_through(runner, made, last, settings, cut=cut)
            if cut is not None:
                return Measured(dict(measuring.taken), 0, {}, 0)
            kept = _keep(runner, made, found, RELEVANT)
            taken = dict(measuring.taken)
            measuring.taken.clear()
            most = _keep(runner, made, found, EVERYTHING)
            return Measured(taken, kept, dict(measuring.taken), most)


def _keep(runner: Runner, made: Made, found: Found, relevant: float) -> int:
    """Select by a threshold, and lay down what is known of the kept images; return how many these are."""
    assert found.copies is not None  # all stages were run
    assert found.near is not None
    with runner.at_work("select"):
        _, selected = select(runner, made, found.copies, found.near, relevant)
        lay_kept(runner, made, found.near, selected)
    return selected.exported


def _least(repeated: Sequence[dict[Kind, Taken]]) -> dict[Kind, Taken]:
    """Return what the units of each kind took, each of them when it took least of a processor."""
    least = dict(repeated[0])
    for kind, taken in least.items():
        others = [each[kind].each for each in repeated]
        cpu_s = sum(min(other[unit] for other in others) for unit in taken.each)
        least[kind] = replace(taken, cpu_s=cpu_s)
    return least


def fit_units(
    sizes: Sequence[int],
    taken: Sequence[Taken],
    compared: Sequence[str] = (),
    more: Sequence[More] = (),
    kept: Sequence[int] = (),
) -> UnitCost:
    """Return the costs of the units of one kind, of what they took at each size.

    `compared` are the quantities that their comparisons grow with, if a map has such, and `kept` the
    images that went out at each size, if they work on these; `more` is what they took of crawls that
    were cut otherwise, or kept otherwise.
    """
    counts = [each.units for each in taken]
    is_reduce = max(counts) <= 2 * min(counts) and max(counts) <= 3
    candidates: dict[str, tuple[str, ...]] = {**_TERMS, **(_OF_REDUCES if is_reduce else _OF_MAPS)}
    known: list[dict[str, float]] = [quantities(size) for size in sizes]
    if kept:
        known = [each | {KEPT: out} for each, out in zip(known, kept, strict=True)]
        for name in (*_OF_KEPT, *(["memory"] if is_reduce else [])):
            # not the root of the images, which is what a made-up crawl keeps
            others = [term for term in candidates[name] if term != "clusters"]
            candidates[name] = (KEPT, *others)
    if compared and not is_reduce:
        # First: where all sizes compare an image with as many, it has the whole cost, so as not to be too low.
        terms = tuple(compared)
        if any(each.compared for each in taken):
            candidates[COUNTED], terms = terms, (COUNTED,)
        candidates["cpu_s"] = (*terms, *candidates["cpu_s"])
    first = list(zip(known, taken, strict=True))
    found = {}
    for name, terms in candidates.items():
        points = [*first, *more] if name == "cpu_s" or KEPT in terms else first
        rows = [each | {COUNTED: done.compared} for each, done in points]
        found[name] = fit(rows, [getattr(done, name) for _, done in points], terms)
    return UnitCost(**found)


_FRESH = """
import json, time
import curate.pipeline
from curate.forecast.measure import own_bytes
from curate.neighbours.heads import MANY, expect_products
process = own_bytes()
used = time.process_time()
expect_products(MANY)
taken = {"torch_s": time.process_time() - used, "torch_bytes": own_bytes() - process}
print(json.dumps({**taken, "process": process}))
"""


def _measure_process() -> dict[str, float]:
    """Return what a new process holds before and after it imports torch, and the CPU seconds of that."""
    done = subprocess.run([sys.executable, "-c", _FRESH], check=True, stdout=subprocess.PIPE)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def _time_export(work: Path) -> float:
    """Return the CPU seconds of reading an image, checking its hash, and writing it to a shard.

    By the stage's own function, the least of some runs behind one that warms up, as of other units.
    """
    with tempfile.TemporaryDirectory(dir=work) as folder:
        crawl, taken = Path(folder, "crawl"), []
        crawl.mkdir()
        draw_crawl(crawl, EXPORTED)
        kept = keep_all(crawl, Path(folder, "work"))
        for number in range(1 + EXPORT_REPETITIONS):
            out = Path(folder, f"out-{number}")
            out.mkdir()
            used = time.process_time()
            export(kept, out)
            taken.append(time.process_time() - used)
            shutil.rmtree(out)
        return min(taken[1:]) / EXPORTED


def _time_units() -> float:
    stored = np.ones((COMPARED[1], 384), np.float16)
    used = time.process_time()
    for at in range(0, len(stored), COMPARED[0]):
        unit(stored[at : at + COMPARED[0]])
    return (time.process_time() - used) / len(stored)


def _time_pairs() -> float:
    rng = np.random.default_rng(0)
    asked, base = (rng.standard_normal((rows, 384), np.float32) for rows in COMPARED)
    used = time.process_time()
    top_k(asked.astype(np.float16), base.astype(np.float16), 5)
    return (time.process_time() - used) / (COMPARED[0] * COMPARED[1])
