"""`lvd-curate run`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curate.cli.options import (
    OutFolder,
    WorkFolder,
    executor_option,
    folder,
    make_plan,
    request_options,
    retry_option,
)
from shared.commands import called
from shared.pages.live import serve_option, serving

if TYPE_CHECKING:
    from curate.execution.output import Output
    from curate.execution.published import Published
    from curate.execution.session import ExecutorName
    from curate.plan import Plan

FAILED, SET_ASIDE = 1, 3
"""The exit status of a run whose result could not be copied everywhere, and of one that is done but
for parts that were set aside."""


@click.command()
@request_options(work=WorkFolder)
@folder(
    "--out",
    kind=OutFolder,
    help="Where the result goes, a folder or an fsspec URL; by default runs/curate/<crawl>-<seed>.",
)
@folder(
    "--since",
    kind=OutFolder,
    metavar="OLD",
    help="A finished result to go on from: what it exported stays. With --replace OUT itself.",
)
@executor_option()
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done, and the disk space it needs."
)
@click.option(
    "--replace",
    is_flag=True,
    help="Swap an OUT that holds other settings, or keeps an earlier result, whole, at the end.",
)
@retry_option()
@serve_option()
def run(
    out: Path | str | None,
    since: Path | str | None,
    executor: ExecutorName,
    dry_run: bool,
    replace: bool,
    retry: str | None,
    serve: int | None,
    **asked: Any,
) -> None:
    """Run a pipeline: from a crawl and a seed to shards, or a list of images, and reports.

    What an earlier run left in --work is used again, whoever started it; a run that was killed
    goes on where it stopped. The exit status is 3 where it is done but for parts that failed again
    and again for reasons of their own.

    Where --out holds a result of these settings and its crawl has more images now, what it exported
    stays and stands for its copies, and all shards are written anew; --replace judges all anew.

    --since OLD does so with another result, whose settings may be others: what OLD exported stays,
    whatever the seeds and budgets of this run say; only filters, lists, labels and holdouts of this
    run drop it. Thresholds that were measured for OLD are kept, and so are its centroids until the
    images have drifted from them (cluster.drift). `lvd-curate update OLD` adds shards to OLD
    instead.

    \b
    lvd-curate run --pipeline sample --out runs/curate/sample
    lvd-curate run --pipeline sample --set retrieve.threshold=0.7 --out runs/curate/looser --dry-run
    """
    from curate.calibration.pairing import wrong_pairings
    from curate.dry_run import describe
    from curate.execution.copies import require_places
    from curate.execution.live import live_page
    from curate.execution.output import SINCE, Output, finish_swap
    from curate.execution.published import fetched, open_published
    from curate.execution.session import is_on_cluster, require_reach
    from curate.increment import read_run
    from curate.plan import check_export, comparable, pinned
    from shared.errors import LvdError
    from shared.progress import warn
    from shared.storage.places import check_writable

    published = None
    live = click.get_current_context().with_resource(serving(serve))
    require_reach(executor, asked["work"], out if isinstance(out, str) else None)
    since_name = str(since)
    if isinstance(since, str):
        since = click.get_current_context().with_resource(fetched(since))
    if since is not None and isinstance(out, str) and is_on_cluster(executor):
        raise LvdError(
            f"--since {since_name}: the machines of a Ray cluster with --work on a store do not see that "
            "folder: unset RAY_ADDRESS"
        )
    if isinstance(out, str):
        published = click.get_current_context().with_resource(open_published(out))
        out = published.local
    plan, out = make_plan(out=out, **asked)
    check_writable(out, "--out")
    if live is not None:
        live.show = live_page(out, plan)
    also = plan.request.settings.export.also
    require_places(also, out, plan.work)
    if published is not None and also:
        raise LvdError(
            f"export.also {also[0]}: copies are made of a result on this machine, and --out is "
            f"{published.url}: name one of the two"
        )
    settings = comparable(plan.request)
    if since is not None:
        since = since.resolve()
        finish_swap(since)
        settings[SINCE] = read_run(since, since_name)["address"]
        if since == out.resolve() and not replace:
            raise LvdError(
                f"--since {since_name} is --out itself: say --replace to swap it at the end, or name "
                "another --out"
            )
    name = published.url if published else None
    anew = "" if replace or since is not None else _why_anew(plan, out, name, retry)
    there = (published.fetch_earlier, published.is_whole) if published else (None, True)
    output = Output(out.absolute(), settings, replace, name, anew, *there)
    check_export(plan)
    for line in wrong_pairings(plan.request):
        warn(line)
    how = (plan, output, out, executor, retry, published)
    if since is not None:
        go_on_from(since, *how, adds=False, dry_run=dry_run, name=since_name)
    elif dry_run:
        click.echo(describe(plan, out, name or ""))
        if held := output.count_images(plan.crawl.name):
            follows = "what it exported stays" if anew is None else f"all are judged anew{anew}"
            click.echo(f"           of {held:,} images: where the crawl has more now, {follows}")
    else:
        carry_out(pinned(plan), *how[1:])


def _why_anew(plan: Plan, out: Path, url: str | None, retry: str | None) -> str | None:
    """Return how what `out` exported could be kept where a run on a grown crawl does not keep it.

    None where it does.
    """
    from shared.storage.files import read_optional

    if retry is not None and read_optional(out / "reports" / "funnel.json").get("set_aside"):
        # what a part has that failed for a while is judged as if it never had
        keep = "; to keep what is exported, stop this run"
        if url is not None:
            return f"{keep} and say --since {url} with another --out"
        return f"{keep} and say {called('lvd-curate')} update {out} --retry {retry}"
    return None


def go_on_from(
    old: Path,
    plan: Plan,
    output: Output,
    out: Path,
    executor: ExecutorName,
    retry: str | None,
    published: Published | None = None,
    *,
    adds: bool,
    dry_run: bool,
    name: str = "",
) -> None:
    """Carry out a plan whose images are judged beside those of the finished result `old`.

    Errors call that `name`. With `adds` it is `out`, and gets new shards. With `dry_run` say what there would be to do.
    """
    from curate.dry_run import describe
    from curate.increment import read_before, refuse_labels
    from curate.plan import pinned
    from shared.storage.locks import scratch_folder

    if adds:
        refuse_labels(plan.request.settings)
    with scratch_folder(plan.work / "scratch") as scratch:
        before = read_before(old, plan.work, scratch, adds=adds, labels=plan.labels, name=name)
        plan = dataclasses.replace(plan, before=before)
        if dry_run:
            click.echo(describe(plan, out, published.url if published else ""))
            return
        plan = pinned(plan)
        before.require_models(plan.embedders)
        carry_out(plan, output, out, executor, retry, published)


def carry_out(
    plan: Plan,
    output: Output,
    out: Path,
    executor: ExecutorName,
    retry: str | None,
    published: Published | None = None,
) -> None:
    """Run a plan into `output`, called `out`, and to where it is `published`; show what came of it;
    exit with 3 where parts were set aside."""
    from curate.execution.copies import note_places
    from curate.execution.output import name_latest
    from curate.execution.session import is_on_cluster, open_runner, require_seen
    from curate.retry import forget_corrupt, forget_set_aside
    from shared.progress import say, warn
    from shared.storage.files import reraise_disk_full

    also = plan.request.settings.export.also
    require_seen(executor, plan.work, (part for data in plan.datasets for part in data.parts))
    if published is not None and is_on_cluster(executor):
        output.build_below(plan.work)
    with reraise_disk_full(out), output.locked():
        if retry == "corrupt":
            say(f"reading {forget_corrupt(plan):,} parts with corrupt images again")
        elif retry == "parts":
            say(f"trying {forget_set_aside(plan):,} parts that were set aside again")
        from curate.pipeline import curate
        from curate.report.summary import summary
        from curate.report.tables import read_funnel

        settings = plan.request.settings.engine
        with open_runner(plan.work, settings, executor, output.out) as runner:
            made = curate(plan, output, runner)
        if published is None:
            name_latest(out)
        elif made:
            published.publish()
            output.clear()
        place = str(out) if published is None else published.url
        if not made:
            say(f"{place} is complete and up to date: nothing to do")
        else:
            click.echo(summary(out, colour=sys.stdout.isatty(), place=place), nl=False)
        note_places(output.out, also)
        failed = [line for place in also if (line := _copy(output.out, place))]
        if failed:
            click.echo(f"lvd-curate: {'; '.join(failed)} ({out} is whole)", err=True)
            sys.exit(FAILED)
        if aside := read_funnel(out).get("set_aside"):
            warn(
                f"{len(aside):,} parts were set aside, as {aside[0]}: what is wrong with each is "
                "listed above and in reports/funnel.json; --retry parts tries them again"
            )
            sys.exit(SET_ASIDE)


def _copy(out: Path, place: str) -> str:
    """Copy a result to a place, and return what went wrong, in one line, or ""."""
    from curate.execution.copies import copy_result
    from shared.errors import LvdError
    from shared.progress import say

    try:
        copied = copy_result(out, place)
    except LvdError as error:
        return str(error)
    say(f"{place} holds a copy" + (f": {copied:,} files were copied" if copied else " already"))
    return ""
