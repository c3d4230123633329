"""The command line of stage one: `lvd-curate`, one file a command."""

from __future__ import annotations

import click

from curate.cli.audit import audit
from curate.cli.calibrate import calibrate
from curate.cli.demo import demo
from curate.cli.diff import diff
from curate.cli.explain import explain
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
    lvd-curate demo                                      all of it, on a made-up crawl
    lvd-curate run --crawl 'crawl/*.tar' --seed my_seed --out runs/mine
    lvd-curate status runs/mine                          how far is it? from another terminal
    lvd-curate update runs/mine                          the crawl has grown: add what is new
    lvd-curate explain runs/mine 00000/000000017         why is this image in, or out?
    lvd-curate search runs/mine photo.jpg                what is like it in the crawl?
    lvd-curate loop --rounds 2                           curate, train, curate with that model
    lvd-curate plan --images 1.2e9 --nodes 20            what would a large run take?
    """


COMMANDS = (
    *(demo, run, update, calibrate, loop, plan),
    *(report, explain, search, diff, query, label, status, verify, gc, remove, audit, completion),
)

for command in COMMANDS:
    main.add_command(command)
