"""`lvd-curate label`."""

from __future__ import annotations

from pathlib import Path

import click

from curate.cli.answer_files import check_answers, write_batches
from curate.cli.options import folder
from shared.commands import LocalFolder, called


@click.command()
@click.argument("out", metavar="OUT", type=LocalFolder())
@folder(
    "--labels",
    required=True,
    metavar="FILE",
    help="A CSV, as the report's page saves it: label, key, other. Labels are keep, drop, and not_a_copy of a copy and, "
    "as other, what it is no copy of.",
)
@folder(
    "--to",
    metavar="FILE",
    help="Where the labels are kept; what was said before stays in it.  [default: OUT.labels.parquet]",
)
def label(out: Path, labels: Path, to: Path | None) -> None:
    """Say what a run got wrong: the next one keeps to it.

    Takes what a CSV says of OUT's images into a file of labels that knows them by their bytes; nothing of
    OUT changes. A run with --set labels=FILE keeps what is labelled so whatever is better or more similar to a seed
    (filters, lists and holdouts still drop it), makes `unsafe` what is to be dropped, lets both of a pair
    that is no copy stand for themselves, and measures its threshold with these pairs as two pictures.

    \b
    lvd-curate query runs/curate/sample --format csv --to runs/labels.csv \\
        "select 'keep' as label, key, '' as other from images where decision = 'irrelevant' limit 3"
    lvd-curate label runs/curate/sample --labels runs/labels.csv --to runs/labels.parquet
    lvd-curate run --pipeline sample --set labels=runs/labels.parquet --out runs/curate/corrected
    """
    from collections import Counter

    from curate.catalogue.labels import read_labels
    from curate.report.label import merge_labels, read_said
    from curate.report.tables import read_funnel
    from shared.progress import count

    read_funnel(out)
    to = to or out.with_name(f"{out.name}.labels.parquet")
    check_answers(to=to)
    said = read_said(out, labels)
    merged = merge_labels(read_labels(to) if to.exists() else None, said, labels)
    write_batches(to, merged.schema, merged.to_batches())
    counts = Counter(merged["label"].to_pylist())
    told = ", ".join(f"{counts[name]:,} {name}" for name in sorted(counts)) or "none"
    click.echo(f"{count(len(said), 'label')} read; {to} holds {told}")
    click.echo(f"the next run: {called('lvd-curate')} run ... --set labels={to} --out ANOTHER")
