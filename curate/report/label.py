"""Turns what a person said of images in a report into labels of their bytes, which a run takes.

Read is a CSV, as the report's page saves it or as typed, with the columns `label`, `key` and, where a
label names two images, `other`: `keep`, `drop`, or `not_a_copy` with a copy and what it is no copy of.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from curate.catalogue.labels import APART, DROP, KEEP, SCHEMA
from curate.report.tables import open_tables, rows
from shared.errors import LvdError, nearest
from shared.progress import printable

SAID = {"keep": KEEP, "drop": DROP, "not_a_copy": APART}
"""Labels by what the CSV calls them."""
COLUMNS = ("label", "key", "other")
_TOGETHER = 1_000
"""Keys that are looked up together."""


class _Line(NamedTuple):
    """One line of the CSV, and where it stands."""

    place: str
    label: str
    key: str
    other: str


def read_said(out: Path, path: Path) -> pa.Table:
    """Return what a CSV says of images of the run in `out`, as rows of `labels.SCHEMA`.

    A reduce over the lines of the CSV. Raises LvdError, in one line with its place, for a line that says
    what cannot be.
    """
    said = list(_lines(path))
    hashes = _hashes(out, {key for line in said for key in (line.key, line.other) if key})
    labels = []
    for line in said:
        for key in (line.key, line.other):
            if key and not hashes.get(key):
                known = "has no bytes" if key in hashes else f"is no key of {out}"
                raise LvdError(f"{line.place}: '{printable(key)}' {known}")
        one, other = hashes[line.key], hashes.get(line.other)
        if line.label == "not_a_copy" and one == other:
            raise LvdError(
                f"{line.place}: the two have the same bytes, which are copies of each other"
            )
        labels.append(
            {
                "label": SAID[line.label],
                "key": line.key,
                "sha256": one,
                "other": line.other or None,
                "other_sha256": other,
            }
        )
    return pa.Table.from_pylist(labels, SCHEMA)


def merge_labels(before: pa.Table | None, said: pa.Table, path: Path) -> pa.Table:
    """Return labels, one for each content or pair of contents; what was said last counts.

    By label and hashes, so that the same labels give the same bytes. LvdError where one file says of one
    image that it is to be kept and to be dropped.
    """
    known: dict[Any, dict[str, Any]] = {}
    now: dict[Any, str] = {}
    for row in [*(before.to_pylist() if before is not None else []), *said.to_pylist()]:
        known[_about(row)] = row
    for row in said.to_pylist():
        about = _about(row)
        if now.setdefault(about, row["label"]) != row["label"]:
            raise LvdError(
                f"{path}: '{printable(row['key'])}' is both to be kept and to be dropped"
            )
    ordered = sorted(known.values(), key=lambda row: (row["label"], str(_about(row))))
    return pa.Table.from_pylist(ordered, SCHEMA)


def _about(row: dict[str, Any]) -> Any:
    if row["label"] == APART:
        return tuple(sorted((row["sha256"], row["other_sha256"])))
    return row["sha256"]


def _lines(path: Path) -> Iterator[_Line]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = reader.fieldnames or []
            if not {"label", "key"} <= set(names):
                raise LvdError(f"--labels {path}: its columns must be {', '.join(COLUMNS)}")
            for row in reader:
                yield _line(f"--labels {path}, line {reader.line_num}", row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise LvdError(f"--labels {path}: {said}: name a CSV") from error


def _line(place: str, row: dict[str, Any]) -> _Line:
    label, key, other = (row.get(name) or "" for name in COLUMNS)
    if label not in SAID:
        raise LvdError(
            f"{place}: no label {printable(label)!r}{nearest(label, SAID)}: there are {', '.join(SAID)}"
        )
    if not key or bool(other) != (label == "not_a_copy"):
        two = "two keys, the second as other" if label == "not_a_copy" else "one key"
        raise LvdError(f"{place}: {label} takes {two}")
    return _Line(place, label, key, other)


def _hashes(out: Path, keys: set[str]) -> dict[str, str | None]:
    ordered = sorted(keys)
    found: dict[str, str | None] = {}
    with open_tables(out) as tables:
        for at in range(0, len(ordered), _TOGETHER):
            some = ordered[at : at + _TOGETHER]
            query = "SELECT key, sha256 FROM images WHERE key IN (SELECT unnest(?::VARCHAR[]))"
            found |= {row["key"]: row["sha256"] for row in rows(tables, query, [some])}
    return found
