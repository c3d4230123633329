"""Stage export: the kept images as WebDataset shards, in the order that `selection/decide.py` dealt them.

Units: `spill` (map over the parts whose bytes cannot be fetched by offset, compressed tars and
Parquet, or beside whose images something is asked for: that is laid down once), those that lay what is
known of the images down in their order (`kept_facts.py`), and one unit a shard, which fetches its
images from wherever they are. A shard is three files side by side, of which `_stats.json` is renamed
last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import Field, field_validator, model_validator

from curate.catalogue.collection import Catalogued, block_size
from curate.catalogue.originals import save_parts
from curate.export.bounds import ShardBounds
from curate.export.encode import PictureSettings
from curate.export.kept_facts import gather_facts, read_facts, sort_facts
from curate.export.samples import read_samples
from curate.export.spill import Source, needs_spill, spill
from curate.retrieval.nearest_seeds import NearestSeeds
from curate.selection.decide import Selected
from curate.stage import Runner, Unit
from shared.datasets.filetypes import kind_of
from shared.shard_folder.shards import SHARD_CAPACITY, write_shard

VERSION = 3
UNPICKLED = ("pickle", "pkl", "pt", "pth", "pyd")
"""Extensions of what readers of shards unpickle unasked, which runs what it likes."""


class ExportSettings(PictureSettings):
    """How the kept images are written."""

    format: Literal["shards", "list"] = "shards"
    """shards: the images are copied into WebDataset shards. list: nothing is copied, and
    `selection.parquet` says where each is; a trainer reads them there, as they are."""
    shard_size: int = Field(1_000, ge=1, le=SHARD_CAPACITY)
    """Images of one shard, or of one row group of a list, at most."""
    shard_bytes: int | None = Field(None, ge=1)
    """Bytes of one shard's images, at most, unless one image has more. Counted are the images' files as
    they were crawled, whatever they are encoded to, without what goes beside them."""
    members: list[str] = Field(default_factory=list)
    """Extensions of what goes into a sample as it lies beside its image, or stands in that Parquet
    column, where it has no more than 1 MiB: `[txt, cls]`. The keys of a `json` become keys of the
    sample's own, but for those that this has. A caption goes out as `.txt` anyway. Parts are gone
    through once more for these."""
    embeddings: bool = False
    """Write the kept images' vectors by the embedder for meaning as well, in clip-retrieval's layout
    (`OUT/embeddings`)."""
    also: list[str] = Field(default_factory=list)
    """Further places that the finished result is copied to: folders, or fsspec URLs."""
    seed: int = 0
    """Seed of the hash that orders the images."""
    hook: str | None = Field(None, pattern=r"^[\w.]+:\w+$")
    """package.module:function that is given each picture and returns it, or an edited one, which is
    what is written; a change of the function's code is not noticed."""

    @field_validator("members")
    @classmethod
    def _are_harmless(cls, members: list[str]) -> list[str]:
        for member in members:
            if not re.fullmatch(r"[a-z0-9_]+", member):
                raise ValueError(f"{member!r} is no extension in lower case, such as txt or cls")
            if kind_of(f"x.{member}") == "image":
                raise ValueError(f"{member} is an image's: what goes beside one is no image")
            if member in UNPICKLED:
                raise ValueError(f"{member} is of what readers unpickle: nothing of a crawl is")
        return list(dict.fromkeys(members))

    @model_validator(mode="after")
    def _is_read(self) -> ExportSettings:
        asked: dict[str, object] = {
            "members": self.members,
            "resize": self.resize,
            "encode": self.encode in ("jpeg", "webp"),
            "hook": self.hook,
        }
        if self.format == "list" and any(asked.values()):
            name = next(name for name, value in asked.items() if value)
            raise ValueError(
                f"format list copies no image, so {name} has no effect: drop it, or say "
                "format=shards"
            )
        return self


@dataclass(frozen=True)
class Kept:
    """Where the kept images are, and what was decided and found."""

    sources: tuple[Source, ...]
    """The crawl first."""
    bounds: ShardBounds
    laid: tuple[Path, ...]
    """What is known of the images of so many shards each, as `gather_facts` leaves it."""
    shards_each: int
    max_pixels: int
    """What the pictures were admitted under."""


def export_shards(
    runner: Runner,
    folders: ExportFolders,
    datasets: Sequence[Catalogued],
    selected: Selected,
    bounds: ShardBounds,
    nearest: NearestSeeds,
    settings: ExportSettings,
    max_pixels: int,
) -> None:
    """Write the kept images of the crawl and the included seeds as shards below `folders.shards`.

    Those that stand before the `bounds` lie there already.
    """
    sources = tuple(
        Source(
            data=each.collection,
            parts=save_parts(each.parts, runner.scratch / f"parts-{each.address}.json"),
            position=selected.folder / f"position-{place}.npy",
            first=int(bounds.edges[0]),
            spills={},
        )
        for place, each in enumerate(datasets)
    )
    members = tuple(settings.members)
    spilled = [
        (Unit(f"spill-{place}-{index:08d}", (source, index, part, members)), source, index)
        for place, (source, each) in enumerate(zip(sources, datasets, strict=True))
        for index, part in enumerate(each.parts)
        if len(bounds) and (members or needs_spill(part))
    ]
    folders.shards.mkdir(parents=True, exist_ok=True)
    units = [unit for unit, _, _ in spilled]
    runner.run(folders.spill, spill, units, scratch=folders.scratch)
    for unit, source, index in spilled:
        source.spills[index] = folders.spill / unit.name
    laid = lay_facts(runner, folders, sources, nearest, bounds)
    kept = Kept(sources, bounds, *laid, max_pixels)
    units = [
        Unit(bounds.name(shard), (kept, shard, settings), int(images))
        for shard, images in enumerate(np.diff(bounds.edges))
    ]
    runner.run(folders.shards, export_shard, units, scratch=folders.scratch, flat=True)
    folders.lay_shards(unit.name for unit in units)


def lay_facts(
    runner: Runner,
    folders: ExportFolders,
    sources: Sequence[Source],
    nearest: NearestSeeds,
    bounds: ShardBounds,
) -> tuple[tuple[Path, ...], int]:
    """Lay what is known of the kept images down in their order; return where, for how many shards each."""
    edges = bounds.edges
    units = [
        Unit(
            f"sorted-{place}-{start:012d}", (source, place, None if place else nearest, start, stop)
        )
        for place, source in enumerate(sources)
        for start, stop in source.data.blocks()
        if len(bounds)
    ]
    runner.run(folders.spill, sort_facts, units, scratch=folders.scratch)
    by_block = [folders.spill / unit.name for unit in units]
    images = int(edges[-1] - edges[0])
    each = max(1, block_size(images) * len(bounds) // max(1, images))
    units = [
        Unit(
            f"gathered-{shard:08d}",
            (by_block, int(edges[shard]), int(edges[min(shard + each, len(bounds))])),
        )
        for shard in range(0, len(bounds), each)
    ]
    runner.run(folders.spill, gather_facts, units, scratch=folders.scratch)
    return tuple(folders.spill / unit.name for unit in units), each


@runtime_checkable
class ExportFolders(Protocol):
    """Where a result is built; all on one file system."""

    shards: Path
    spill: Path
    scratch: Path

    def lay_shards(self, names: Iterable[str]) -> None:
        """Put shards of these names that were built elsewhere where they belong."""
        ...


def export_shard(kept: Kept, shard: int, settings: ExportSettings, *, out: Path) -> dict[str, Any]:
    """Write one shard into `out`; the images' bytes are checked against their sha256."""
    some = kept.bounds.places(shard)
    facts = read_facts(kept.laid[shard // kept.shards_each], some.start, some.stop)
    samples = read_samples(kept.sources, facts, settings, kept.max_pixels)
    return write_shard(out, kept.bounds.name(shard), samples)
