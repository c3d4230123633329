"""What a run is going to do, known before anything heavy is imported: datasets, parts, space."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from curate.calibration.thresholds import known_thresholds
from curate.embedding.embed import embed_fingerprint, unit_name
from curate.sample.make import make_sample
from curate.settings import Named, Request
from shared.datasets import DatasetSettings, Part, list_parts
from shared.embedders import EmbedderSettings, resolve
from shared.errors import LvdError
from shared.storage import UNIT_MANIFEST, read_json

BUILT_IN = "builtin:"
BYTES_PER_IMAGE = 100_000
"""Of a typical crawl; used to guess the number of images before they are counted."""
WORK_PER_IMAGE = 6_000
"""Facts, and three copies of a 768-dimensional float16 vector."""


@dataclass(frozen=True)
class Dataset:
    """A dataset in its role, with its parts in key order."""

    role: str
    name: str
    parts: list[Part]


@dataclass(frozen=True)
class Plan:
    """A request whose datasets were found and whose embedder was resolved for this machine."""

    request: Request
    embedder: EmbedderSettings
    datasets: list[Dataset]
    work: Path

    @property
    def crawl(self) -> Dataset:
        """The crawl: always the first dataset; the seed is the second, holdouts follow."""
        return self.datasets[0]


def make_plan(request: Request, work: Path) -> Plan:
    """Find all parts of all datasets. LvdError, in a second, where one has no images."""
    roles = [("seed", request.seed), ("crawl", request.crawl)]
    roles += [("holdout", held) for held in request.holdouts]
    found = [Dataset(role, named.name, parts_of(named, work)) for role, named in roles]
    return Plan(
        request=request,
        embedder=resolve(request.embedder.settings),
        datasets=[found[1], found[0], *found[2:]],
        work=work,
    )


def parts_of(named: Named, work: Path) -> list[Part]:
    """Return the parts of a dataset in the order of their keys; the built-in sample is made."""
    settings = named.settings
    if isinstance(settings.path, str) and settings.path.startswith(BUILT_IN):
        make_sample(work / "sample")
        path = work / "sample" / settings.path.removeprefix(BUILT_IN)
        settings = DatasetSettings(**{**settings.model_dump(), "path": str(path)})
    try:
        parts = list_parts(named.name, settings)
    except LvdError as error:
        if not named.variables:
            raise
        raise LvdError(f"{error}, or set {named.variables} to where it is") from error
    return sorted(parts, key=lambda part: part.name + "/")


def default_out(request: Request) -> Path:
    """Return `runs/curate/<crawl>-<seed>`."""
    crawl, seed = (_label(named.name) for named in (request.crawl, request.seed))
    return Path("runs") / "curate" / f"{crawl}-{seed}"


def _label(name: str) -> str:
    path = name.rstrip("/").split("/")[-1]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", path).strip("._") or "dataset"


def describe(plan: Plan, out: Path) -> str:
    """Return what a run would do: the plan, its parts, what is cached, the space needed."""
    request, settings = plan.request, plan.request.settings
    device = f"{plan.embedder.device}, {plan.embedder.precision}"
    lines = [f"pipeline   {request.pipeline}", f"embedder   {request.embedder.name} ({device})"]
    missing = 0
    for dataset in plan.datasets:
        folder = embed_folder(plan, dataset)
        todo = [
            part
            for part in dataset.parts
            if not (folder / unit_name(part) / UNIT_MANIFEST).exists()
        ]
        nbytes = sum(part.nbytes for part in dataset.parts)
        missing += sum(part.nbytes for part in todo)
        lines.append(
            f"{dataset.role:<9}  {dataset.name}: {len(dataset.parts):,} {dataset.parts[0].format} "
            f"parts, {_bytes(nbytes)}; {len(dataset.parts) - len(todo):,} embedded, {len(todo):,} to do"
        )
    known = known_thresholds(settings, plan.embedder)
    for name in ("dedup", "retrieve"):
        value = f"{known[name].value} (inclusive)" if name in known else "auto: measured in the run"
        lines.append(f"{name:<9}  threshold {value}")
    work = missing // BYTES_PER_IMAGE * WORK_PER_IMAGE + 2**20
    shards = sum(part.nbytes for part in plan.crawl.parts)
    for folder, need, what in (
        (plan.work, work, "needed for facts and vectors, about"),
        (out, shards, "needed for shards, at most about"),
    ):
        lines.append(f"space      {folder}: {what} {_bytes(need)}; {_bytes(_free(folder))} free")
    lines.append(f"output     {out}" + (" (exists)" if out.exists() else ""))
    return "\n".join(lines)


def _free(folder: Path) -> int:
    return shutil.disk_usage(_there(folder)).free


def _there(folder: Path) -> Path:
    """Return the nearest of a folder and its parents that exists."""
    return next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )


def _bytes(count: float) -> str:
    for suffix in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {suffix}" if suffix == "B" else f"{count:.1f} {suffix}"
        count /= 1000
    return f"{count:.1f} TB"


def writable(folder: Path, option: str) -> None:
    """Fail at once where nothing can be written."""
    there = _there(folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise LvdError(f"{option} {folder}: cannot write below {there}: name another folder")


def embed_folder(plan: Plan, dataset: Dataset) -> Path:
    """Return where the parts of a dataset are embedded with the plan's settings."""
    return (
        plan.work
        / "embed"
        / embed_fingerprint(
            plan.embedder,
            plan.request.settings.embed,
            score_columns(plan, dataset),
            plan.request.settings.engine.threads,
        )
    )


def score_columns(plan: Plan, dataset: Dataset) -> list[str]:
    """Return the columns of the dataset's own tables that the filters read."""
    filters = plan.request.settings.filters if dataset.role == "crawl" else []
    return sorted({entry.column for entry in filters})


def forget_corrupt(plan: Plan) -> int:
    """Remove the embedded units that hold corrupt images or problems; return how many."""
    count = 0
    for dataset in plan.datasets:
        folder = embed_folder(plan, dataset)
        for part in dataset.parts:
            unit = folder / unit_name(part)
            if (unit / UNIT_MANIFEST).exists():
                stats = read_json(unit / UNIT_MANIFEST)
                if stats["corrupt"] or stats["problems"]:
                    (unit / UNIT_MANIFEST).unlink()
                    shutil.rmtree(unit)
                    count += 1
    return count
