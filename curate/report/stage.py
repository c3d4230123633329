"""Stage report: the tables, the funnel, the pictures and the page of a result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, runtime_checkable

from curate.catalogue.collection import Collection
from curate.catalogue.originals import Originals
from curate.report import rows
from curate.report.pictures import pictures
from curate.report.rows import Decided
from curate.stage import Runner, Unit
from shared.datasets import Part


@runtime_checkable
class ReportFolders(Protocol):
    """Where the tables' units are built."""

    tables: Path
    scratch: Path

    def lay_tables(self, units: list[Path]) -> None:
        """Put the units' tables where the contract says."""
        ...


def write_tables(runner: Runner, folders: ReportFolders, decided: Decided) -> None:
    """Write the Parquet tables, a unit for each block of images in the order of their keys."""
    units = [
        Unit(f"{block:05d}", (decided, start, stop), stop - start)
        for block, (start, stop) in enumerate(decided.crawl.blocks())
    ]
    runner.run(folders.tables, rows.tables, units, scratch=folders.scratch)
    folders.lay_tables([folders.tables / unit.name for unit in units])


def draw(out: Path, datasets: dict[str, tuple[Collection, list[Part]]], scratch: Path) -> None:
    """Draw the pictures and the page of the result in `out`, from the images of crawl and seed."""
    with ExitStack() as stack:
        readers = {
            role: read_by_key(
                stack.enter_context(Originals(collection, parts, scratch)), collection
            )
            for role, (collection, parts) in datasets.items()
        }
        pictures(out, readers["crawl"], readers["seed"])


def read_by_key(originals: Originals, collection: Collection) -> Callable[[str], bytes | None]:
    """Return a function from a key to its image's bytes, or None."""

    def read(key: str) -> bytes | None:
        number = collection.find(key)
        return None if number is None else originals.read(number)

    return read
