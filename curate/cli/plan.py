"""`lvd-curate plan`."""

from __future__ import annotations

from pathlib import Path

import click

from curate.cli.options import folder

GIB = 2**30


class Count(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A number of things, which may be written as 1.2e9 or 1_200_000_000."""

    name = "number"

    def convert(
        self, value: str | float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return it; a usage error, in one line, for what is none."""
        try:
            count = float(value)
        except ValueError:
            count = 0.0
        if not 1 <= count < 1e15:
            self.fail(f"{value!r} is no number of things: say 1200000000 or 1.2e9", param, ctx)
        return count


class Counts(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """Three numbers of images or more, separated by commas."""

    name = "numbers"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return them; a usage error, in one line, for what is none."""
        if isinstance(value, tuple):
            return value
        sizes = tuple(sorted({int(Count().convert(each, param, ctx)) for each in value.split(",")}))
        if len(sizes) < 3 or sizes[0] < 10_000:
            self.fail(
                f"{value!r}: growth is measured at three sizes or more, of 10,000 images or more, "
                "such as 31250,62500,125000",
                param,
                ctx,
            )
        return sizes


@click.command()
@click.option("--images", type=Count(), required=True, help="Images of the crawl, such as 1.2e9.")
@click.option("--dim", type=click.IntRange(1), help="Of a vector.  [default: the embedder's own]")
@click.option(
    "--embedder",
    default="dinov2-s",
    show_default=True,
    help="An embedder whose costs are known, or, with --calibrate, any of the configuration.",
)
@click.option("--seeds", type=Count(), default=1e6, show_default=True, help="Images of the seed.")
@click.option(
    "--image-bytes", type=Count(), default=1e5, show_default=True, help="Of a crawled image."
)
@click.option(
    "--kept",
    type=click.FloatRange(0, 1),
    default=0.12,
    show_default=True,
    help="Share of the images that go out; LVD-142M's was 0.12.",
)
@click.option("--nodes", type=click.IntRange(1), default=1, show_default=True)
@click.option("--cores", type=click.IntRange(1), default=32, show_default=True, help="Of a node.")
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    default=128,
    show_default=True,
    help="GiB of a node.",
)
@click.option("--gpus", type=click.IntRange(0), default=0, show_default=True, help="Of a node.")
@click.option(
    "--gpu-rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Images/s that a card embeds, where nobody has measured it.",
)
@click.option("--price", type=click.FloatRange(0), help="Of a node for an hour, in any currency.")
@click.option("--json", "as_json", is_flag=True, help="Print the forecast as JSON.")
@click.option(
    "--calibrate", is_flag=True, help="Measure this machine first, and write --constants."
)
@click.option(
    "--sizes",
    type=Counts(),
    default="125000,250000,1000000",
    show_default=True,
    help="Images of the made-up crawls that --calibrate measures.",
)
@folder(
    "--constants",
    help="A file that --calibrate wrote, or is to write.  [default: those that lvd ships; with "
    "--calibrate plan-constants.json]",
)
@folder(
    "--config",
    default=Path("pipelines.yaml"),
    show_default=True,
    help="Where --calibrate finds the embedder.",
)
@folder(
    "--work",
    default=Path("runs/work"),
    show_default=True,
    help="Where --calibrate builds its crawls, some kB an image, and removes them.",
)
def plan(
    images: float,
    dim: int | None,
    embedder: str,
    seeds: float,
    image_bytes: float,
    kept: float,
    nodes: int,
    cores: int,
    memory: float,
    gpus: int,
    gpu_rate: float | None,
    price: float | None,
    as_json: bool,
    calibrate: bool,
    sizes: tuple[int, ...],
    constants: Path | None,
    config: Path,
    work: Path,
) -> None:
    """Say what a run would take: storage, memory, requests, time and cost by stage, and what fits.

    Nothing is read and nothing is started. The forecast stands on what the units of each stage took
    on one machine for made-up crawls of three sizes, and on how that grows.

    \b
    lvd-curate plan --images 1.2e9 --seeds 14.2e6 --nodes 20 --cores 64 --memory 512
    lvd-curate plan --images 1e7 --nodes 4 --gpus 8 --price 30 --json
    lvd-curate plan --images 1e8 --calibrate --embedder bundled     some minutes of one core

    cpu h are hours of one core of the machine that was measured; hours is the time from start to end,
    and alone how much of it passes in one process, whatever the nodes. GB is what stays in --work
    (of export: in --out); node GiB what a node needs with a process for each core; puts and gets are
    files written and read, as an object store counts them. Below stands what does not fit, and what
    would.
    """
    from curate.dedup.below import ROUND
    from curate.forecast.calibrate import calibrate as measure
    from curate.forecast.constants import SHIPPED, read_constants, write_constants
    from curate.forecast.forecast import Asked, forecast
    from curate.forecast.text import as_dict, embedder_cost, find_embedder, table
    from curate.settings import PipelineSettings
    from shared.storage.files import dumps
    from shared.storage.places import check_writable

    if calibrate:
        place = constants or Path("plan-constants.json")
        check_writable(place.absolute().parent, "--constants")
        check_writable(work, "--work")
        work.mkdir(parents=True, exist_ok=True)
        settings = find_embedder(config, embedder)
        known = measure(read_constants(SHIPPED), sizes, (embedder, settings), work)
        write_constants(known, place)
        click.echo(f"{place}: measured on {known.machine}", err=True)
    else:
        known = read_constants(constants or SHIPPED)
    cost = embedder_cost(known, embedder, gpu_rate)
    pipeline = PipelineSettings()
    asked = Asked(
        images=images,
        dim=dim or cost.dim,
        embedder=cost,
        seeds=seeds,
        image_bytes=image_bytes,
        kept=kept,
        looks=ROUND if pipeline.dedup.looks == "auto" else pipeline.dedup.looks,
        exact=pipeline.retrieve.index.exact,
        probes=pipeline.retrieve.index.probes,
        nodes=nodes,
        cores=cores,
        memory=memory * GIB,
        gpus=gpus,
        price=price,
    )
    stages = forecast(known, asked)
    click.echo(dumps(as_dict(stages, known, asked)) if as_json else table(stages, known, asked))
