"""Curation, from a crawl and a seed to shards and reports.

Each stage's folder below `work` is addressed by the stage's settings and version and by what went
into it: whatever is there already is used, and a change recomputes only what stands behind it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from curate.catalogue.collection import Collection
from curate.catalogue.originals import Originals
from curate.execution.engine import Engine
from curate.execution.output import RUN, Output, versions
from curate.export import shards as export
from curate.plan import Plan, parts_of
from curate.report import rows
from curate.report.pictures import pictures
from curate.settings import Named
from curate.stages import Run
from shared.datasets import DatasetSettings
from shared.errors import LvdError
from shared.progress import warn
from shared.storage import fingerprint, read_json


def curate(plan: Plan, output: Output) -> bool:
    """Run the pipeline into `output`; return False when it stands there already.

    Raises LvdError, in one line, for whatever the user can mend.
    """
    started = time.monotonic()
    with Engine(plan.work, plan.request.settings.engine) as engine:
        run = Run(plan, engine)
        run.embed()
        run.calibrate()
        run.cluster()
        run.dedup()
        run.holdout()
        run.retrieve()
        run.select()
        address = fingerprint([run.address, output.settings, export.VERSION, rows.VERSION])
        if output.stands(address):
            return False
        output.begin(address)
        run.export(output)
        with engine.stage("report"):
            run.report(output)
            output.write(_run(run), _funnel(run), address)
            if plan.request.settings.report.pictures:
                _draw(run, output)
        output.finish(engine.times, time.monotonic() - started)
    return True


def comparable(plan: Plan) -> dict:
    """Return the settings that decide the result: those that an OUT is compared by."""
    request = plan.request
    return {
        "pipeline": request.pipeline,
        "crawl": request.crawl.name,
        "seed": request.seed.name,
        "holdouts": [held.name for held in request.holdouts],
        "embedder": {"name": request.embedder.name, **plan.embedder.model_dump(mode="json")},
        **request.settings.model_dump(
            mode="json",
            exclude={"crawl": True, "seed": True, "holdouts": True, "embedder": True}
            | {"engine": {"workers"}, "embed": {"decode_threads"}},
        ),
    }


def redraw(out: Path, work: Path) -> None:
    """Draw the pictures of a finished run again, from what it says of its datasets.

    Without the crawl, the seed or `work`, a warning says which images are missing from them.
    """
    path = out / RUN
    if not path.exists():
        raise LvdError(f"no run in {out}: name the --out of one")
    readers, scratch = {}, work / "scratch"
    with ExitStack() as stack:
        for role, about in read_json(path)["datasets"].items():
            try:
                collection = Collection(work / "catalogue" / about["content"] / "all")
                named = Named(about["name"], DatasetSettings(**about["settings"]))
                originals = Originals(collection, parts_of(named, work), scratch)
                readers[role] = _reader(stack.enter_context(originals), collection)
                readers[role]("")
            except (LvdError, OSError) as error:
                readers[role] = lambda key: None
                warn(f"drawn without the images of the {role} that were not kept: {error}")
        pictures(out, readers["crawl"], readers["seed"])


def _draw(run: Run, output: Output) -> None:
    crawl, seed, scratch = run.crawl, run.seed, run.engine.scratch
    with (
        Originals(crawl.collection, crawl.parts, scratch) as crawled,
        Originals(seed.collection, seed.parts, scratch) as seeds,
    ):
        pictures(
            output.partial, _reader(crawled, crawl.collection), _reader(seeds, seed.collection)
        )


def _run(run: Run) -> dict:
    plan = run.plan
    named = {"crawl": plan.request.crawl, "seed": plan.request.seed}
    return {
        "crawl": run.crawl.name,
        "seed": run.seed.name,
        "holdouts": [held.name for held in run.holdouts],
        "embedder": plan.request.embedder.name,
        "settings": comparable(plan),
        "thresholds": _thresholds(run),
        "calibration": run.calibrations,
        "datasets": {
            role: {
                "name": named[role].name,
                "settings": named[role].settings.model_dump(mode="json"),
                "content": getattr(run, role).address,
            }
            for role in named
        },
        "versions": versions(),
    }


def _funnel(run: Run) -> dict:
    counts = run.group_counts
    return {
        "images": len(run.crawl.collection),
        "decisions": run.decisions,
        "groups": {"count": counts["groups"], "members": counts["members"]},
        "dedup_recall": run.recall,
        "thresholds": _thresholds(run),
        "problems": [
            text for data in (run.crawl, run.seed, *run.holdouts) for text in data.problems
        ],
        "settings": comparable(run.plan),
        "versions": versions(),
    }


def _thresholds(run: Run) -> dict:
    return {
        name: {"value": threshold.value, "source": threshold.source}
        for name, threshold in run.thresholds.items()
    }


def _reader(originals: Originals, collection: Collection):
    """Return a function from a key to its image's bytes, or None."""

    def read(key: str) -> bytes | None:
        number = collection.find(key)
        return None if number is None else originals.read(number)

    return read
