"""The loop's results by round: images kept and their kinds, overlap, k-NN scores, time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from curate.execution.output import RUN
from curate.report.tables import open_tables, read_funnel, rows, table_patterns
from shared.errors import LvdError
from shared.progress import printable
from shared.storage.files import read_optional, write_json, written_whole

TRUTH = ("part", "member", "kind")
"""Columns of a CSV with the kind of each crawled image: its member may be without the extension."""
UNKNOWN = "(not in --truth)"
STEPS = ("curate", "train")
COLUMNS = pa.schema(
    [
        ("round", pa.int32()),
        ("metric", pa.string()),
        ("setting", pa.string()),
        ("value", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Finished:
    """A finished round, from which the table is read."""

    embedder: str
    """Name of the one that judged meaning, for readers."""
    curation: Path
    """The OUT of `lvd-curate run`."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of each step."""
    knn: Mapping[str, float] = field(default_factory=dict)
    """Top-1 of the model that the round trained, by setting (`k=20`)."""


@dataclass(frozen=True)
class Kind:
    """How many images of a kind there are, and how many were kept."""

    crawled: int
    kept: int


@dataclass(frozen=True)
class Figures:
    """The figures of a round."""

    embedder: str
    thresholds: Mapping[str, Mapping[str, Any]]
    """By stage: `value`, a cosine, and `source`, as in run.json."""
    images: int
    kept: int
    kinds: Mapping[str, Kind]
    """Empty where no truth was given."""
    overlap: Mapping[int, float | None]
    """With each earlier round: images kept in both / in either; None where neither kept one."""
    knn: Mapping[str, float]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class LoopTable:
    """All rounds, and the k-NN of the embedder that judged meaning in the first."""

    crawl: str
    seed: str
    recipe: str
    rounds: Sequence[Figures]
    first_knn: Mapping[str, float] = field(default_factory=dict)

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield a record for each figure: round (0: before the first), metric, setting, value.

        `kept`, `images` and `kept_share` are of all images (setting "") and of each kind;
        `threshold` of a stage; `overlap` with a round; `knn` at a k; `seconds` of a step.
        """
        for setting, value in self.first_knn.items():
            yield _record(0, "knn", setting, value)
        for number, figures in enumerate(self.rounds, start=1):
            for kind, of in {"": Kind(figures.images, figures.kept), **figures.kinds}.items():
                yield _record(number, "images", kind, of.crawled)
                yield _record(number, "kept", kind, of.kept)
                yield _record(number, "kept_share", kind, of.kept / of.crawled)
            for stage, threshold in figures.thresholds.items():
                yield _record(number, "threshold", stage, threshold["value"])
            for metric in ("overlap", "knn", "seconds"):
                for setting, value in getattr(figures, metric).items():
                    yield _record(number, metric, str(setting), value)


def read_table(
    finished: Sequence[Finished],
    *,
    recipe: str,
    truth: Path | None = None,
    first_knn: Mapping[str, float] | None = None,
) -> LoopTable:
    """Return the table of finished rounds; `truth` is a CSV with the columns `TRUTH`.

    Images are the same where their keys are: a copy that is kept in place of another counts as
    another image. Raises LvdError where a round has no reports.
    """
    with _open(finished) as tables:
        if truth:
            tables.register("named", _read_truth(truth))
        figures = []
        for number, of in enumerate(finished, start=1):
            funnel = read_funnel(of.curation)
            earlier = range(1, number)
            figures.append(
                Figures(
                    embedder=of.embedder,
                    thresholds=funnel["thresholds"],
                    images=funnel["images"],
                    kept=funnel["decisions"]["kept"],
                    kinds=_kinds(tables, number) if truth else {},
                    overlap={other: _overlap(tables, other, number) for other in earlier},
                    knn=of.knn,
                    seconds=of.seconds,
                )
            )
    run = read_optional(finished[0].curation / RUN)
    return LoopTable(run["crawl"], run["seed"], recipe, figures, first_knn or {})


def check_truth(truth: Path) -> None:
    """Raise LvdError where `truth` is no CSV with the columns `TRUTH`, or a row has others."""
    _read_truth(truth)


def write_table(table: LoopTable, text: str, out: Path) -> None:
    """Write table.txt, table.json and table.parquet to `out`, each whole or not at all."""
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(table.records()), schema=COLUMNS), stream)
    write_json(out / "table.json", asdict(table))
    for name, data in (("parquet", stream.getvalue()), ("txt", text.encode())):
        with written_whole(out / f"table.{name}") as beside:
            beside.write_bytes(data)


def _record(number: int, metric: str, setting: str, value: float | None) -> dict[str, Any]:
    return {"round": number, "metric": metric, "setting": setting, "value": value}


def _open(finished: Sequence[Finished]) -> duckdb.DuckDBPyConnection:
    """Return a connection with the images of each round as the views `images_1`, `images_2`, ..."""
    tables = open_tables(finished[0].curation)
    for number, of in enumerate(finished, start=1):
        tables.read_parquet(table_patterns(of.curation, "images")).create_view(f"images_{number}")
    return tables


def _overlap(tables: duckdb.DuckDBPyConnection, one: int, other: int) -> float | None:
    kept = "SELECT key FROM images_{} WHERE decision = 'kept'"
    [found] = rows(
        tables,
        f"SELECT count(*) AS either, count(a.key) + count(b.key) - count(*) AS both "
        f"FROM ({kept.format(one)}) a FULL JOIN ({kept.format(other)}) b ON a.key = b.key",
    )
    return found["both"] / found["either"] if found["either"] else None


def _read_truth(truth: Path) -> pa.Table:
    """Return the columns `TRUTH`, all text."""
    text = csv.ConvertOptions(column_types=dict.fromkeys(TRUTH, pa.string()))
    try:
        table = csv.read_csv(truth, convert_options=text)
    except (OSError, pa.ArrowInvalid) as error:
        reason = printable(str(error))
        raise LvdError(f"--truth {truth} cannot be read as a CSV: {reason}") from None
    if missing := [name for name in TRUTH if name not in table.column_names]:
        raise LvdError(f"--truth {truth} has no column {missing[0]!r}: it needs {', '.join(TRUTH)}")
    return table.select(TRUTH)


def _kinds(tables: duckdb.DuckDBPyConnection, number: int) -> dict[str, Kind]:
    found = rows(
        tables,
        f"""
        WITH truth AS (SELECT part, member, min(kind) AS kind FROM named GROUP BY part, member)
        SELECT coalesce(whole.kind, stem.kind, ?) AS kind, count(*) AS crawled,
            count(*) FILTER (i.decision = 'kept') AS kept
        FROM images_{number} i
        LEFT JOIN truth whole ON i.part = whole.part AND i.member = whole.member
        LEFT JOIN truth stem ON i.part = stem.part AND i.key = stem.part || '/' || stem.member
        GROUP BY ALL ORDER BY kind
        """,
        [UNKNOWN],
    )
    return {row["kind"]: Kind(row["crawled"], row["kept"]) for row in found}
