"""`lvd-curate audit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.cli.options import executor_option, folder, work_option

if TYPE_CHECKING:
    from curate.execution.session import ExecutorName


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option(
    "--threshold",
    type=float,
    help="Cosine from which two images are copies, inclusive.  [default: the embedder's own, else "
    "measured on the larger dataset]",
)
@folder(
    "--out",
    help="Where audit.parquet and audit.png go.  [default: runs/audit/<a>-<b>]",
)
@click.option(
    "--embedder",
    default="bundled-copies",
    show_default=True,
    help="Finds copies: an embedder of the configuration, or a model folder.",
)
@folder(
    "--config",
    help="Datasets and embedders, where A, B or --embedder is a name.  [default: pipelines.yaml, if "
    "there is one]",
)
@work_option("Where all runs keep what can be used again.")
@executor_option()
def audit(
    a: str,
    b: str,
    threshold: float | None,
    out: Path | None,
    embedder: str,
    config: Path | None,
    work: Path,
    executor: ExecutorName,
) -> None:
    """Find copies between two datasets, such as a training set and a test set.

    A and B are each the --out of a run, a dataset of the configuration, or a path: a folder of
    images or tars, a tar, a glob, a Parquet file, an fsspec URL. What a run has embedded already is
    not embedded again.

    \b
    lvd-curate audit runs/curate/sample sample-seed --threshold 0.9
    lvd-curate audit runs/curate/train runs/curate/test
    lvd-curate audit runs/curate/mine data/imagenet-val --threshold 0.8

    audit.parquet has a row for each image of either that has a copy in the other: key_a, key_b,
    similarity, and method, which is exact for the same bytes and near for others. audit.png shows
    some pairs, the least similar first: if these are no copies, the threshold is too low. Images
    that cannot be decoded are compared by their bytes alone. The exit status is 0 whatever is found.
    """
    from curate.audit.answer import write_answer
    from curate.audit.audit import audit
    from curate.audit.request import read_audit
    from curate.execution.session import open_runner
    from curate.plan import label
    from shared.storage.files import reraise_disk_full
    from shared.storage.places import check_writable

    out = out or Path("runs") / "audit" / f"{label(a)}-{label(b)}"
    check_writable(work, "--work")
    check_writable(out, "--out")
    place = work.absolute()
    request = read_audit(config, (a, b), embedder, threshold, place, [out.absolute()])
    with open_runner(place, request.engine, executor) as runner:
        found = audit(runner, request)
        with reraise_disk_full(out):
            lines = write_answer(found, request.embedder.name, out, runner.scratch)
    for line in lines:
        click.echo(line)
