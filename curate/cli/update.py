"""`lvd-curate update`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.cli.options import SET, executor_option, folder, retry_option, work_option
from curate.cli.run import carry_out
from shared.commands import LocalFolder

if TYPE_CHECKING:
    from curate.execution.session import ExecutorName


@click.command()
@click.argument("out", metavar="OUT", type=LocalFolder())
@folder(
    "--config", default=Path("pipelines.yaml"), show_default=True, help="Datasets and embedders."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SET)
@work_option("Where all runs keep what can be used again.")
@executor_option()
@click.option("--dry-run", is_flag=True, help="Say what there is to embed.")
@retry_option()
def update(
    out: Path,
    config: Path,
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
    take it out with `lvd-curate remove` first. To judge everything anew, use `lvd-curate run`.
    """
    from curate.dry_run import describe
    from curate.execution.copies import require_places
    from curate.execution.output import Output
    from curate.increment import read_before, read_run
    from curate.plan import (
        check_export,
        comparable,
        make_plan,
        pinned,
        pipeline_of,
        writable,
    )
    from curate.settings import read_request
    from shared.config import flat
    from shared.errors import LvdError
    from shared.locks import scratch_folder

    interrupted = Output(out.absolute(), {}, replace=True)
    if not out.exists() and interrupted.partial.exists():
        with interrupted.locked():
            pass  # which finishes a swap that was cut off between its two renames
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
    )
    for name, value in flat(comparable(request)).items():
        if flat(settings).get(name) != value:
            raise LvdError(
                f"{out} has {name}={flat(settings).get(name)!r}, not {value!r}, and what is added to "
                "it is judged by its settings: curate anew into another OUT with `lvd-curate run`"
            )
    asked = request.settings
    weighing = {
        "balance.target": asked.balance.target is not None,
        "dedup.keep=centrality": asked.dedup.keep == "centrality",
        "dedup.chain_floor": asked.dedup.chain_floor is not None,
    }
    if said := [name for name, is_set in weighing.items() if is_set]:
        raise LvdError(
            f"{out} was made with {said[0]}, which weighs images by all others, so that new ones would "
            "change what is there: curate anew into another OUT with `lvd-curate run`"
        )
    writable(work, "--work")
    writable(out, "OUT")
    plan = make_plan(request, work.absolute(), out.absolute())
    output = Output(out.absolute(), comparable(request), replace=False)
    require_places(request.settings.export.also, out, plan.work)
    check_export(plan)
    if dry_run:
        click.echo(describe(plan, out))
        return
    with scratch_folder(plan.work / "scratch") as scratch:
        before = read_before(out.absolute(), plan.work, scratch)
        plan = pinned(replace(plan, before=before))
        before.require_models(plan.embedders)
        carry_out(plan, output, out, executor, retry)
