"""The command line of stage one: `lvd-curate`, one file a command."""

from __future__ import annotations

import click

from curate.cli.audit import audit
from curate.cli.calibrate import calibrate
from curate.cli.demo import demo
from curate.cli.diff import diff
from curate.cli.explain import explain
from curate.cli.export import export
from curate.cli.gc import gc
from curate.cli.label import label
from curate.cli.loop import loop
from curate.cli.plan import plan
from curate.cli.query import query
from curate.cli.remove import remove
from curate.cli.report import report
from curate.cli.run import run
from curate.cli.search import search
from curate.cli.status import status
from curate.cli.update import update
from curate.cli.verify import verify
from shared.commands import Commands, completion


@click.group(cls=Commands, prog="lvd-curate")
def main() -> None:
    """Curate a crawl: embed, de-duplicate, keep what is similar to a seed, write shards.

    \b
    lvd-curate demo                                                all of it, on a made-up crawl
    lvd-curate run --pipeline sample --out runs/curate/sample      the same crawl, step by step
    lvd-curate report runs/curate/sample                           what was kept, and why
    lvd-curate run --crawl 'crawl/*.tar' --seed my_seed --out runs/curate/mine --dry-run

    Each command's --help begins with an example on that sample; docs/tasks.md has ten tasks.
    """


main.add_section("Curate", demo, run, calibrate, update, loop, plan)
main.add_section("See what became of it", status, report, explain, query, search, diff, export)
main.add_section("Correct it", label, remove)
main.add_section("Look after it", audit, verify, gc)
main.add_command(completion)
