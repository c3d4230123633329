"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click

from shared.commands import LocalFolder

EMBEDDER = (
    "Finds copies and judges meaning, whatever the pipeline names for either: an embedder of the "
    "configuration, bundled or bundled-copies (the project's own), descriptor, or a model folder "
    "(config.json + model.safetensors)."
)
DATASET = (
    "a dataset of the configuration, or a path: a folder of images or tars, a tar, a glob, a brace "
    "list, a Parquet file, an fsspec URL."
)
SET = (
    "Override a setting of the pipeline, such as dedup.threshold=0.9, export.shard_size=5000 or "
    "engine.workers=4 (a wrong name lists the right ones). Repeatable."
)


class WorkFolder(LocalFolder):
    """The work folder; one behind a URL is worked on in a copy, for as long as the command lasts."""

    def convert_url(
        self, url: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return the copy."""
        from shared.datasets.outputs import WORK_MARKER
        from shared.storage.stores import opened

        assert ctx is not None  # click gives one to every option of a command
        copy: Path = ctx.with_resource(opened(url, "--work", WORK_MARKER))
        return copy


class OutFolder(LocalFolder):
    """The folder of a result, or its URL."""

    def convert_url(
        self, url: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the URL as it is."""
        return url


def folder(
    *names: str, help: str, kind: type[LocalFolder] = LocalFolder, **more: Any
) -> Callable[..., Any]:
    """Return an option that takes a path."""
    return click.option(*names, type=kind(), help=help, **more)


def request_options(
    pipeline: str = "default",
    settings: str = "--set",
    work: type[LocalFolder] = LocalFolder,
) -> Callable[..., Any]:
    """Return the decorator with the options of whatever curates."""
    options = [
        click.option(
            "--pipeline",
            default=pipeline,
            show_default=True,
            help="A pipeline of the configuration.",
        ),
        click.option("--embedder", help=EMBEDDER),
        click.option("--crawl", help=f"The crawl: {DATASET}"),
        click.option(
            "--seed",
            "seeds",
            multiple=True,
            help=f"A seed: {DATASET} Repeatable; one that the pipeline has under seeds keeps its "
            "settings.",
        ),
        click.option(
            "--holdout",
            "holdouts",
            multiple=True,
            help="An evaluation set whose copies must not be kept. Repeatable.",
        ),
        folder(
            "--config",
            default=Path("pipelines.yaml"),
            show_default=True,
            help="Datasets, embedders and pipelines.",
        ),
        click.option(settings, "overrides", multiple=True, metavar="KEY=VALUE", help=SET),
        work_option("Where all runs keep what can be used again.", work),
    ]
    return lambda function: reduce(lambda made, option: option(made), reversed(options), function)


def work_option(help: str, kind: type[LocalFolder] = LocalFolder) -> Callable[..., Any]:
    """Return the option --work."""
    return folder("--work", kind=kind, default=Path("runs/work"), show_default=True, help=help)


def executor_option() -> Callable[..., Any]:
    """Return the option --executor."""
    return click.option(
        "--executor",
        type=click.Choice(["auto", "ray", "inline"]),
        default="auto",
        show_default=True,
        help="ray: many processes, here or on the cluster at RAY_ADDRESS. inline: all in this one. "
        "auto: ray, but for what takes less time than Ray's start.",
    )


def retry_option() -> Callable[..., Any]:
    """Return the option --retry."""
    return click.option(
        "--retry",
        type=click.Choice(["corrupt", "parts"]),
        help="corrupt: read the parts that held corrupt images again. parts: try those again that "
        "were set aside.",
    )


def make_plan(
    pipeline: str, config: Path, work: Path, out: Path | None = None, **asked: Any
) -> tuple[Any, Path]:
    """Return the plan of a call with `request_options`, and where its result goes."""
    from curate import plan
    from curate.request import read_request
    from shared.storage.places import check_writable

    request = read_request(config, pipeline, **asked)
    out = out or plan.default_out(request)
    check_writable(work, "--work")
    return plan.make_plan(request, work.absolute(), out.absolute()), out
