"""The vectors that a finished run left in its work folder, and the embedder that made them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool

from curate.catalogue.collection import PARTS, Collection, Numbers, read_rows
from curate.report.tables import read_funnel, table_files
from shared.datasets.outputs import WORK_MARKER
from shared.embedders.embedder import at_commit, identity
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.storage.files import fingerprint, read_json

Role = Literal["dedup", "retrieve"]
"""Whose vectors: those by which copies are found, or those by which seeds are near."""


@dataclass(frozen=True)
class StoredCrawl:
    """The crawl of a finished run as one of its embedders sees it; nothing is read before it is asked
    for."""

    out: Path
    work: Path
    run: dict[str, Any]
    """The result's `run.json`."""
    role: Role
    collection: Collection

    @property
    def embedder_name(self) -> str:
        """What the run calls the embedder."""
        return str(self.run["embedders"][self.role]["name"])

    @property
    def threads(self) -> int:
        """Threads of a task of the run."""
        return int(self.run["settings"]["engine"]["threads"])

    def embedder(self) -> EmbedderSettings:
        """Return the embedder, to embed something new; LvdError where it is another model by now."""
        said = {
            k: v for k, v in self.run["settings"]["embedders"][self.role].items() if k != "name"
        }
        defaults = {name: field.default for name, field in EmbedderSettings.model_fields.items()}
        own = {k: v for k, v in said.items() if k == "kind" or v != defaults[k]}
        settings = EmbedderSettings(**own)
        if revision := self.run["revisions"].get(self.embedder_name):
            settings = at_commit(settings, revision)
        try:
            now = fingerprint(identity(settings))
        except OSError as error:
            raise LvdError(
                f"embedder {self.embedder_name}, by which {self.out} was made, cannot be read: {error}"
            ) from error
        if now != fingerprint(self.run["embedders"][self.role]["identity"]):
            raise LvdError(
                f"embedder {self.embedder_name} is another model than when {self.out} was made, so "
                "that its vectors say nothing of those that are stored: bring the old one back, or "
                "curate anew"
            )
        return settings

    def seeds(self) -> dict[str, Collection]:
        """Return the run's seeds by name, as its embedder for meaning sees them."""
        return {
            about["name"]: _catalogued(self.work, about["content"], self.out)
            for name, about in self.run["datasets"].items()
            if name.partition(" ")[0] == "seed"
        }

    def rows(self, places: Numbers, columns: list[str]) -> pa.Table:
        """Return columns of `images.parquet` at some places in the order of the keys."""
        tables, where, start = [], [], 0
        for path in table_files(self.out, "images"):
            count = pq.read_metadata(path).num_rows
            here = np.flatnonzero((places >= start) & (places < start + count))
            if len(here):
                tables.append(read_rows(path, columns, places[here] - start))
                where.append(here)
            start += count
        if not tables:
            return read_rows(table_files(self.out, "images")[0], columns, np.empty(0, np.int64))
        return pa.concat_tables(tables).take(np.argsort(np.concatenate(where)))

    def decided(self, decisions: tuple[str, ...]) -> Bool[np.ndarray, " n"]:
        """Tell, by place in the order of the keys, which images were decided about in these ways."""
        files = table_files(self.out, "images")
        total = sum(pq.read_metadata(path).num_rows for path in files)
        result, at = np.empty(total, bool), 0
        for path in files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=["decision"]):
                    found = pc.is_in(batch.column(0), pa.array(decisions))
                    result[at : at + len(batch)] = found.to_numpy(zero_copy_only=False)
                    at += len(batch)
        return result


def open_stored(out: Path, work: Path, role: Role) -> StoredCrawl:
    """Open what the run in `out` left in `work`; LvdError, in one line, where it is not there."""
    read_funnel(out)
    run = read_json(out / "run.json")
    address = run.get("embedders", {}).get(role, {}).get("crawl")
    if address is None:
        raise LvdError(
            f"{out} was made by a version that did not note where its vectors are: curate anew into "
            "another OUT"
        )
    if not (work / WORK_MARKER).exists():
        raise LvdError(f"--work {work} is no work folder: name the --work of the run in {out}")
    return StoredCrawl(out, work, run, role, _catalogued(work, address, out))


@contextmanager
def reading(stored: StoredCrawl) -> Iterator[None]:
    """Turn a missing file of the work folder into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise _gone(stored.work, stored.out) from error


def _catalogued(work: Path, address: str, out: Path) -> Collection:
    collection = Collection(work / "catalogue" / address / "all")
    if not (collection.folder / PARTS).exists():
        raise _gone(work, out)
    return collection


def _gone(work: Path, out: Path) -> LvdError:
    return LvdError(
        f"--work {work} does not hold the vectors of {out} (any more): name the --work of its run, or "
        "make them again with the command that made it and another --out"
    )
