"""Stage report: the tables, the funnel, the pictures and the page of a result."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from curate.catalogue.collection import Catalogued, Collection
from curate.catalogue.originals import Originals
from curate.report import groups, rows, seed_images
from curate.report.pairs import PAIRS, REGROUPED, Pool, pair_units
from curate.report.pictures import pictures
from curate.report.rows import Decided
from curate.report.schemas import TABLES
from curate.stage import Runner, Unit


@runtime_checkable
class ReportFolders(Protocol):
    """Where the tables' units are built, and where the tables go."""

    reports: Path
    tables: Path
    scratch: Path

    def lay_tables(self, names: Iterable[str], units: list[Path], into: Path) -> None:
        """Put the units' tables of these names into a folder."""
        ...


def write_tables(runner: Runner, folders: ReportFolders, decided: Decided) -> None:
    """Write the Parquet tables, a unit for each block of images in the order of their keys.

    There is a table of the images of seeds where some are included, and one of clusters where a
    balance is kept.
    """
    units = [
        Unit(f"{block:05d}", (decided, start, stop), stop - start)
        for block, (start, stop) in enumerate(decided.crawl.blocks())
    ]
    runner.run(folders.tables, rows.tables, units, scratch=folders.scratch)
    folders.lay_tables(TABLES, [folders.tables / unit.name for unit in units], folders.reports)
    args = (decided.dedup_threshold, decided.grouping)
    units = [
        Unit(f"groups-{number:05d}", (decided.crawl, shape, *args))
        for number, shape in enumerate(decided.shapes)
    ]
    function = groups.table if units else groups.no_groups
    units = units or [Unit("groups-none", ())]
    runner.run(folders.tables, function, units, scratch=folders.scratch)
    made = [folders.tables / unit.name for unit in units]
    folders.lay_tables([groups.NAME], made, folders.reports)
    units = seed_images.units_of_seeds(decided)
    if units:
        runner.run(folders.tables, seed_images.table, units, scratch=folders.scratch)
        made = [folders.tables / unit.name for unit in units]
        folders.lay_tables([seed_images.NAME], made, folders.reports)
    if decided.balanced is not None:
        unit = Unit("balance", (decided.balanced / "balance.parquet",))
        runner.run(folders.tables, copy_table, [unit], scratch=folders.scratch)
        folders.lay_tables(["balance"], [folders.tables / unit.name], folders.reports)


def write_pairs(runner: Runner, folders: ReportFolders, pool: Pool) -> dict[str, Any] | None:
    """Write the pairs, and what other thresholds make of them; return what the funnel says of them.

    None where no pair is to be listed for an image.
    """
    if not pool.per_image:
        return None
    unit, told = pair_units(pool, runner, folders.tables, folders.scratch)
    folders.lay_tables([PAIRS, REGROUPED], [unit], folders.reports)
    return told


def copy_table(path: Path, *, out: Path) -> None:
    """Write a table that a stage has made."""
    shutil.copyfile(path, out / path.name)


def draw(out: Path, crawl: Catalogued, seeds: Sequence[Catalogued], scratch: Path) -> None:
    """Draw the pictures and the page of the result in `out`, from the images of crawl and seeds."""
    with ExitStack() as stack:

        def reader(data: Catalogued) -> Callable[[str], bytes | None]:
            originals = stack.enter_context(Originals(data.collection, data.parts, scratch))
            return read_by_key(originals, data.collection)

        pictures(out, reader(crawl), {seed.name: reader(seed) for seed in seeds if seed.parts})


def read_by_key(originals: Originals, collection: Collection) -> Callable[[str], bytes | None]:
    """Return a function from a key to its image's bytes, or None."""

    def read(key: str) -> bytes | None:
        number = collection.find(key)
        return None if number is None else originals.read(number)

    return read
