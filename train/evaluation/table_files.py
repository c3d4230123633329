"""The files that hold a table of scores."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import LvdError
from shared.storage.files import write_json, written_whole
from train.evaluation.table import Table
from train.evaluation.table_text import as_text

COLUMNS = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("model", "fingerprint", "task", "metric")),
        *(pa.field(name, pa.string()) for name in ("setting", "train", "test", "data", "note")),
        pa.field("value", pa.float64()),
        pa.field("higher_is_better", pa.bool_()),
    ]
)


def write_table(table: Table, out: Path) -> None:
    """Write table.txt, table.parquet and table.json to the folder `out`, each whole or not at all.

    The Parquet file has a row for each model, task, metric and setting: model (its name as it was
    given), fingerprint (of all that decides its features), task, metric, setting (what the metric
    was taken at, or what won on held-out data), train, test and data (where the task read them, as
    given; else null), note, value (a fraction, or metres; NaN where there is none) and
    higher_is_better. The JSON file has the same records as `figures` (null in place of NaN), and
    with them what each model needs, what failed, the notes and the settings.
    """
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table.figures(), schema=COLUMNS), stream)
    figures = [
        {**figure, "value": figure["value"] if math.isfinite(figure["value"]) else None}
        for figure in table.figures()
    ]
    models = [
        {"name": row.model, "fingerprint": row.fingerprint, "needs": row.needs}
        | {"failures": dict(row.failures)}
        for row in table.rows
    ]
    whole: dict[str, Any] = {"figures": figures, "models": models, "notes": table.notes}
    whole |= {"settings": dict(table.settings), "data": dict(table.places)}
    make_folder(out)
    with _failing_in_a_line(out):
        write_json(out / "table.json", whole)
        for name, data in (("parquet", stream.getvalue()), ("txt", as_text(table).encode())):
            with written_whole(out / f"table.{name}") as beside:
                beside.write_bytes(data)


def make_folder(out: Path) -> None:
    """Make the folder `out` where it is not there; LvdError where that cannot be done."""
    with _failing_in_a_line(out):
        out.mkdir(parents=True, exist_ok=True)


@contextmanager
def _failing_in_a_line(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LvdError(
            f"--out {out} cannot be written ({error.strerror or error}): name another folder"
        ) from error
