"""`lvd-curate update`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.cli.options import SET, executor_option, folder, retry_option, work_option
from curate.cli.run import go_on_from
from shared.commands import LocalFolder

if TYPE_CHECKING:
    from curate.execution.session import ExecutorName


@click.command()
@click.argument("out", metavar="OUT", type=LocalFolder())
@folder(
    "--config",
    help="Datasets and embedders; by default pipelines.yaml, if it is there: paths need none.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SET)
@work_option("Where all runs keep what can be used again.")
@executor_option()
@click.option("--dry-run", is_flag=True, help="Say what there is to embed.")
@retry_option()
def update(
    out: Path,
    config: Path | None,
    overrides: tuple[str, ...],
    work: Path,
    executor: ExecutorName,
    dry_run: bool,
    retry: str | None,
) -> None:
    """Add to a finished result what is new in its crawl, as shards of their own.

    Settings and measured thresholds are those of OUT; only what is new is embedded, and it is
    compared with all that is old. What OUT holds stays as it is and where it is: it stands for its
    copies, old and new, and counts towards budgets and targets. Clusters keep their centroids until
    the images have drifted from them (cluster.drift). The tables then speak of the whole crawl.
    What the crawl has lost, or what became corrupt or unsafe since, is refused while OUT holds it:
    take it out with `lvd-curate remove` first. `lvd-curate run` into OUT keeps to the same rule and
    writes all shards anew, with --replace it judges everything anew.

    \b
    lvd-curate update runs/curate/sample --dry-run
    """
    from curate.execution.copies import require_places
    from curate.execution.output import SINCE, Output, finish_swap
    from curate.increment import read_run
    from curate.plan import check_export, comparable, make_plan, pipeline_of
    from curate.request import read_request
    from shared.config import flat
    from shared.errors import LvdError
    from shared.storage.places import check_writable

    finish_swap(out.absolute())
    run = read_run(out)
    settings = run["settings"]
    request = read_request(
        config,
        settings["pipeline"],
        embedder=None,
        crawl=None,
        seeds=(),
        holdouts=(),
        overrides=overrides,
        settings=pipeline_of(run),
        options=run.get("options", ()),
    )
    for name, value in flat(comparable(request)).items():
        if flat(settings).get(name) != value:
            raise LvdError(
                f"{out} has {name}={flat(settings).get(name)!r}, not {value!r}, and what is added to "
                "it is judged by its settings: curate anew into another OUT with `lvd-curate run`"
            )
    check_writable(work, "--work")
    check_writable(out, "OUT")
    plan = make_plan(request, work.absolute(), out.absolute())
    own = comparable(request) | {name: settings[name] for name in [SINCE] if name in settings}
    output = Output(out.absolute(), own, replace=False)
    require_places(request.settings.export.also, out, plan.work)
    check_export(plan)
    go_on_from(out.absolute(), plan, output, out, executor, retry, adds=True, dry_run=dry_run)
