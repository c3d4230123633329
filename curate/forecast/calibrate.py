"""Measures the constants of a forecast on this machine, with made-up crawls of three sizes or more."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL.Image import Image

from curate.dedup.near import DedupSettings, count_compared, count_probes
from curate.embedding.embed import Forwards, embed_part
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.execution.output import versions
from curate.execution.session import open_runner
from curate.forecast.constants import COUNTED, Constants, EmbedderCost, UnitCost, fit, quantities
from curate.forecast.made import make
from curate.forecast.measure import MeasuringExecutor, Taken
from curate.forecast.stages import STAGES, take_through
from curate.neighbours.cluster import ClusterSettings, count_clusters
from curate.neighbours.heads import MANY, expect_products
from curate.neighbours.search import top_k, unit, use_threads
from curate.sample.make import make_sample
from curate.stage import EngineSettings
from curate.state import LocalState
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.parts import PartReader
from shared.embedders.embedder import Embedder, load, resolve_device
from shared.embedders.settings import EmbedderSettings
from shared.pictures.images import ImageError, decode
from shared.progress import say
from shared.shard_folder.shards import Sample, write_shard
from shared.storage.commits import committed
from shared.storage.remote import read_range

SEEDS = 1_000
COMPARED = 4_096, 65_536
"""Images and seed images whose comparison is timed."""
REPETITIONS = 2
"""Of each size; of each unit the one that took least CPU counts: other jobs of a machine add to it."""
LARGER = 4
"""A crawl is cut and searched as one of so many times the largest size, too."""
EXPORTED, EXPORTED_BYTES = 1_000, 55_000
"""Images that are written to a shard to time that, and the bytes of each."""
FORWARD = 64
"""Images whose forward pass is timed."""

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
    measured = []
    name, settings = embedder
    say(f"measuring the embedder {name}")
    facts, cost = measure_embedder(settings, work)
    for images in sizes:
        measured.append(_measure(images, work))
    larger = _as_larger(sizes[1], LARGER * sizes[-1], work)
    kinds = sorted({kind for each in measured for kind in each})
    units: dict[str, dict[str, UnitCost]] = {}
    for stage, function in kinds:
        taken = [each.get((stage, function), Taken()) for each in measured]
        compared = _COMPARING.get(function, ()) if stage != "retrieve" else ()
        more = larger.get((stage, function)) if compared else None
        units.setdefault(stage, {})[function] = fit_units(sizes, taken, compared, more)
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


def _measure(
    images: int,
    work: Path,
    last: str = STAGES[-1],
    cut: ClusterSettings | None = None,
    probes: int | Literal["auto"] = "auto",
) -> dict[Kind, Taken]:
    """Return what the units of each kind took, of the stages up to `last`."""
    say(f"measuring a made-up crawl of {images:,} images")
    return _least([_measure_once(images, work, last, cut, probes) for _ in range(REPETITIONS)])


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
        taken = _measure(images, work, last, ClusterSettings(clusters=cut_into), probes)
        known = quantities(images, cut_into)
        found |= {kind: (known, each) for kind, each in taken.items() if kind[1] in functions}
    return found


def _measure_once(
    images: int,
    work: Path,
    last: str,
    cut: ClusterSettings | None,
    probes: int | Literal["auto"],
) -> dict[Kind, Taken]:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        home = Path(folder).resolve()
        with open_runner(home, EngineSettings(), "inline") as runner:
            runner.executor = measuring = MeasuringExecutor(home)
            made = make(runner, images, SEEDS)
            take_through(runner, made, last, DedupSettings(looks=0, probes=probes), cut=cut)
            return dict(measuring.taken)


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
    more: More | None = None,
) -> UnitCost:
    """Return the costs of the units of one kind, of what they took at each size.

    `compared` are the quantities that their comparisons grow with, if a map has such, and `more` what
    they took of a crawl that was cut otherwise.
    """
    counts = [each.units for each in taken]
    is_reduce = max(counts) <= 2 * min(counts) and max(counts) <= 3
    candidates: dict[str, tuple[str, ...]] = {**_TERMS, **(_OF_REDUCES if is_reduce else _OF_MAPS)}
    known: list[dict[str, float]] = [quantities(size) for size in sizes]
    costs = {name: [getattr(each, name) for each in taken] for name in candidates}
    of_cpu = [*zip(known, taken, strict=True), *([more] if more else [])]
    costs["cpu_s"] = [each.cpu_s for _, each in of_cpu]
    if compared and not is_reduce:
        # First: where all sizes compare an image with as many, it has the whole cost, so as not to be too low.
        terms = tuple(compared)
        if any(each.compared for each in taken):
            candidates[COUNTED], terms = terms, (COUNTED,)
            costs[COUNTED] = [each.compared for each in taken]
        candidates["cpu_s"] = (*terms, *candidates["cpu_s"])
    rows = [each | {COUNTED: done.compared} for each, done in of_cpu]
    return UnitCost(
        **{
            name: fit(rows[: len(costs[name])], costs[name], terms)
            for name, terms in candidates.items()
        }
    )


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
    """Return the CPU seconds of reading an image, checking its hash, and writing it to a shard."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        source, images = Path(folder, "source"), range(EXPORTED)
        source.write_bytes(np.random.default_rng(0).bytes(EXPORTED_BYTES * EXPORTED))

        def samples() -> Iterator[Sample]:
            for number in images:
                data = read_range(str(source), EXPORTED_BYTES * number, EXPORTED_BYTES)
                row = {"sha256": hashlib.sha256(data).hexdigest(), "source_member": str(number)}
                yield Sample(f"crawl/{number}", data, "jpg", row, size=(256, 256))

        used = time.process_time()
        write_shard(Path(folder), "00000", samples())
        return (time.process_time() - used) / EXPORTED


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


def measure_embedder(settings: EmbedderSettings, work: Path) -> tuple[float, EmbedderCost]:
    """Return the bytes of an image's facts, and what an image of the built-in sample costs.

    Weights do not matter, so models of timm have random ones.
    """
    update = {"pretrained": False} if settings.kind == "timm" else {}
    settings = resolve_device(settings.model_copy(update={**update, "device": "cpu"}))
    with tempfile.TemporaryDirectory(dir=work) as folder:
        home = Path(folder)
        make_sample(home / "sample")
        parts = list_parts("sample", DatasetSettings(path=str(home / "sample" / "crawl")))
        warm_up, part = sorted(parts, key=lambda each: each.nbytes)[:2]
        request = EmbedRequest(home / "work", EmbedSettings(), (settings,), (), 1)
        scratch = home / "work" / "scratch"
        scratch.mkdir(parents=True)
        state = LocalState(Forwards((settings,), 1))
        embed_part(state, warm_up, request, scratch=scratch)
        used = time.process_time()
        done = embed_part(state, part, request, scratch=scratch)
        whole = time.process_time() - used
        made = committed(request.vectors(settings) / done["content"])
        assert made is not None
        facts = sum(file.stat().st_size for file in (request.facts / done["content"]).iterdir())
        images, embedder = made["vectors"], load(settings, 1)
        with PartReader(part, scratch, ()) as reader:
            members = list(reader.members)[:FORWARD]
            prepared = [
                embedder.prepare(picture)
                for picture in (_decoded(reader.read(each), embedder) for each in members)
                if picture is not None
            ]
    embedder.embed(prepared[:8])
    used = time.process_time()
    vectors = embedder.embed(prepared)
    forward = (time.process_time() - used) / len(prepared)
    return facts / images, EmbedderCost(
        dim=vectors.shape[1],
        decode_s=max(0.0, whole / images - forward),
        forward_s=forward,
        torch=settings.kind != "descriptor",
        measured_on=machine(),
    )


def _decoded(data: bytes, embedder: Embedder) -> Image | None:
    """Return the picture, or None of one that cannot be decoded: the sample has some."""
    try:
        return decode(data, reduce_to=embedder.reduce_to)
    except ImageError:
        return None


def machine() -> str:
    """Return what processor this is."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
