"""What is true of the sample's pictures, and how much of it a run found."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from curate.report.tables import open_tables
from shared.errors import LvdError
from shared.progress import printable


@dataclass(frozen=True)
class Truth:
    """The originals and kinds of a sample's pictures, by their keys."""

    path: Path
    """The file that says so."""
    originals: Mapping[str, str]
    """Of a planted copy, the key of the picture that it was made from; of another one, its own."""
    kinds: Mapping[str, str]
    """Of a planted copy, the kind of its original."""

    def is_copy(self, key: str, other: str) -> bool:
        """Return whether two pictures have the same original; LvdError if one is not known."""
        return self._of(self.originals, key) == self._of(self.originals, other)

    def kind(self, key: str) -> str:
        """Return the kind of a picture; LvdError if it is not known."""
        return self._of(self.kinds, key)

    def _of(self, table: Mapping[str, str], key: str) -> str:
        if key not in table:
            raise LvdError(
                f"{self.path} does not know {printable(key)}, which was curated: remove "
                f"{self.path.parent}, and run the same command again"
            )
        return table[key]


@dataclass(frozen=True)
class Findings:
    """Counts of a run's decisions, against the truth."""

    planted: int
    """Planted copies in the crawl."""
    called: int
    """Pictures that were called copies."""
    found: int
    """Of those, the ones called a copy of a picture with the same original. One picture of each
    original is called none, so `planted` is the most that there can be."""
    kept: Counter[str]
    """Kept pictures of each kind."""


def read_truth(sample: Path) -> Truth | None:
    """Return the truth about the built-in sample made in `sample`; None where it is not there."""
    path = sample / "truth.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = {row["member"]: row for row in csv.DictReader(file)}  # stems are unique
        keys = {stem: f"{row['part']}/{stem}" for stem, row in table.items()}
        origins = {stem: row["copy_of"] or stem for stem, row in table.items()}
        return Truth(
            path,
            originals={keys[stem]: keys[origin] for stem, origin in origins.items()},
            kinds={keys[stem]: table[origin]["kind"] for stem, origin in origins.items()},
        )
    except (OSError, KeyError):
        return None


def check_decisions(curation: Path, truth: Truth) -> Findings:
    """Count what a finished curation of the sample found.

    Raises LvdError where it has not finished, or is of another crawl.
    """
    decided = open_tables(curation).execute("SELECT key, decision, duplicate_of FROM images")
    called, found, kept = 0, 0, Counter[str]()
    for key, decision, origin in decided.fetchall():
        if decision == "duplicate":
            called += 1
            found += truth.is_copy(key, origin)
        elif decision == "kept":
            kept[truth.kind(key)] += 1
    planted = sum(key != original for key, original in truth.originals.items())
    return Findings(planted, called, found, kept)
