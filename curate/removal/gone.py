"""Which images go when a list is taken out of a result.

Those that the list names; those of the same bytes, so that no byte of these stays; and the copies
for which such an image stood: with it they were left out, and nothing takes its place. A copy that
stands for itself, or for others, stays. Images of seeds that were written to the shards go like
crawled ones, with the crawled images that were left out as copies of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool

from curate.filters.lists import CompiledList, ListSettings, compile_lists, listed
from curate.report.tables import SEED_IMAGES, image_files, table_files
from shared.errors import LvdError

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("sha256", pa.string()),
        ("url", pa.string()),
        ("pdq", pa.string()),
        ("decision", pa.string()),
        ("reason", pa.string()),
        ("group", pa.int64()),
        ("duplicate_of", pa.string()),
        ("output_shard", pa.string()),
        ("output_key", pa.string()),
        ("seed", pa.string()),
    ]
)
"""What is read of the tables of images, null where one of them has no such column."""
REMOVED = pa.schema(
    [
        ("seed", pa.string()),
        ("key", pa.string()),
        ("sha256", pa.string()),
        ("decision", pa.string()),
        ("reason", pa.string()),
        ("list", pa.string()),
        ("pdq", pa.string()),
    ]
)
"""`reports/removed.parquet`: what was taken out, sorted by key; `seed` is null for what was crawled,
`decision` that of before. `pdq` is the hash whose near copies stay out, too, null where none do."""


@dataclass(frozen=True)
class Gone:
    """An image that goes, and why."""

    table: str
    """`images`, or `SEED_IMAGES`."""
    row: int
    """Of that table; the group of a crawled image that stands for copies has this number."""
    seed: str | None
    key: str
    sha256: str | None
    was: str
    """What had been decided about it."""
    reason: str
    list: str
    shard: str | None
    """Where it was written, with `output_key`; None for both where it was not kept."""
    output_key: str | None
    pdq: str | None = None
    """By which near copies of it are to be known; None where these stay."""


def find_near(out: Path, gone: Sequence[Gone], scratch: Path) -> list[Gone]:
    """Return what goes with the near copies of these by PDQ, and these with their hashes.

    `scratch` is for the list of the hashes. Raises LvdError where a result has none.
    """
    _require_column(out, "pdq")
    known = {(each.table, each.row): each for each in gone}
    for name, start, images in _blocks(out):
        for (table, row), each in known.items():
            if table == name and start <= row < start + len(images):
                known[table, row] = replace(each, pdq=images["pdq"][row - start].as_py())
    if not gone:
        return []
    path = scratch / "near.txt"
    path.write_text("".join(f"{each.pdq}\n" for each in known.values() if each.pdq))
    settings = ListSettings(kind="pdq", path=str(path))
    [near] = compile_lists({gone[0].list: settings}, scratch, scratch)
    more = {(each.table, each.row): each for each in find_gone(out, near)}
    return [found for _, found in sorted({**more, **known}.items())]


def find_gone(out: Path, asked: CompiledList) -> list[Gone]:
    """Return all images of a result that go, by table and row, but for those that went before.

    What is `corrupt` has left no byte in a result, and stays what it is. Reads a few columns of
    the tables of images up to three times or so, a file at a time; holds what goes. Raises LvdError
    where no crawled image has what the list is of.
    """
    gone: dict[tuple[str, int], Gone] = {}
    _require_column(out, asked.column)
    for name, start, images in _blocks(out):
        [check] = listed(images, [asked])
        for row in np.flatnonzero(check.failing & _readable(images)).tolist():
            made = _gone(name, images, start, row, check.reason(row), asked.name)
            gone[name, made.row] = made
    fresh = list(gone.values())
    while fresh:
        same = {each.sha256: each for each in reversed(fresh) if each.sha256}
        stood = {each.row: each for each in fresh if each.table == "images"}
        of_seeds = {each.key: each for each in fresh if each.table == SEED_IMAGES}
        fresh = []
        for name, start, images in _blocks(out):
            hit = _is_in(images["sha256"], pa.array(list(same), pa.string()))
            hit |= _is_in(images["group"], pa.array(list(stood), pa.int64()))
            copies = _copies_of_seeds(images, start, of_seeds)
            for row in np.flatnonzero((hit | copies) & _readable(images)).tolist():
                if (name, start + row) in gone:
                    continue
                sha256, group = images["sha256"][row].as_py(), images["group"][row].as_py()
                if sha256 in same:
                    reason = f"the same bytes as {same[sha256].key}: {same[sha256].reason}"
                elif copies[row]:
                    of = of_seeds[images["duplicate_of"][row].as_py()]
                    reason = f"a copy of {of.key} of seed {of.seed}: {of.reason}"
                else:
                    reason = f"a copy of {stood[group].key}: {stood[group].reason}"
                made = _gone(name, images, start, row, reason, asked.name)
                gone[name, made.row] = made
                fresh.append(made)
    before = {(row["seed"], row["key"]) for row in read_removed(out).to_pylist()}
    return [gone[at] for at in sorted(gone) if (gone[at].seed, gone[at].key) not in before]


def read_removed(out: Path) -> pa.Table:
    """Return what was taken out of a result before."""
    path = out / "reports" / "removed.parquet"
    return pq.read_table(path) if path.exists() else REMOVED.empty_table()


def _require_column(out: Path, name: str) -> None:
    for path in table_files(out, "images"):
        if name in pq.read_schema(path).names:
            column = pq.read_table(path, columns=[name])[name]
            if column.null_count < len(column):
                return
    hint = ": runs with a list of kind pdq in `lists`, be it empty, have it"
    said = f"{out}: no image has a {name}, by which images would be found"
    raise LvdError(said + (hint if name == "pdq" else ""))


def _blocks(out: Path) -> Iterator[tuple[str, int, pa.Table]]:
    for name, start, path in image_files(out):
        there = set(pq.read_schema(path).names)
        read = pq.read_table(path, columns=[column for column in COLUMNS.names if column in there])
        columns = [
            read[field.name] if field.name in there else pa.nulls(len(read), field.type)
            for field in COLUMNS
        ]
        yield name, start, pa.table(columns, schema=COLUMNS)


def _readable(images: pa.Table) -> Bool[np.ndarray, " n"]:
    readable: Bool[np.ndarray, " n"] = pc.not_equal(images["decision"], "corrupt").to_numpy()
    return readable


def _is_in(column: pa.ChunkedArray, values: pa.Array) -> Bool[np.ndarray, " n"]:
    hit: Bool[np.ndarray, " n"] = pc.is_in(column, values, skip_nulls=True).to_numpy()
    return hit


def _copies_of_seeds(
    images: pa.Table, start: int, of_seeds: Mapping[str, Gone]
) -> Bool[np.ndarray, " n"]:
    """Return which images are copies of these of included seeds, rather than of a crawled one.

    Such an image has no group, or stands for it.
    """
    rows = np.arange(start, start + len(images))
    group = images["group"].fill_null(-1).to_numpy()
    hit = _is_in(images["duplicate_of"], pa.array(list(of_seeds), pa.string()))
    copies: Bool[np.ndarray, " n"] = hit & ((group < 0) | (group == rows))
    return copies


def _gone(table: str, images: pa.Table, start: int, row: int, reason: str, name: str) -> Gone:
    [image] = images.slice(row, 1).to_pylist()
    return Gone(
        table=table,
        row=start + row,
        seed=image["seed"],
        key=image["key"],
        sha256=image["sha256"],
        was=image["decision"],
        reason=reason,
        list=name,
        shard=image["output_shard"],
        output_key=image["output_key"],
    )
