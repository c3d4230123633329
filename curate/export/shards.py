"""Stage export: the kept images as WebDataset shards, in the order that `selection/decide.py` dealt them.

Units: `spill` (map over the parts whose bytes cannot be fetched by offset, compressed tars and
Parquet, or beside whose images something is asked for: that is laid down once) and one unit a shard,
which fetches its images from wherever they are. A shard is three files side by side, of which
`_stats.json` is renamed last.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int16
from pydantic import Field, field_validator, model_validator

from curate.catalogue.collection import Catalogued, Numbers
from curate.catalogue.originals import changed, load_parts, save_parts
from curate.export.bounds import ShardBounds
from curate.export.encode import PictureSettings, encode
from curate.export.hook import edit
from curate.export.spill import Source, needs_spill, read_spilled, spill
from curate.retrieval.nearest_seeds import NearestSeeds
from curate.selection.decide import Selected
from curate.stage import Runner, Unit
from shared.errors import LvdError
from shared.filetypes import kind_of
from shared.images import ImageError
from shared.parts import fetch
from shared.shards import SHARD_CAPACITY, Sample, write_shard
from shared.sidecars import read_object

VERSION = 2
FETCH_AHEAD = 8
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
    selected: Path
    bounds: ShardBounds
    nearest: NearestSeeds
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
    folders.shards.mkdir(exist_ok=True)
    units = [unit for unit, _, _ in spilled]
    runner.run(folders.spill, spill, units, scratch=folders.scratch)
    for unit, source, index in spilled:
        source.spills[index] = folders.spill / unit.name
    kept = Kept(sources, selected.folder, bounds, nearest, max_pixels)
    units = [
        Unit(bounds.name(shard), (kept, shard, settings), int(images))
        for shard, images in enumerate(np.diff(bounds.edges))
    ]
    runner.run(folders.shards, export_shard, units, scratch=folders.scratch, flat=True)


@runtime_checkable
class ExportFolders(Protocol):
    """Where a result is built; all on one file system."""

    shards: Path
    spill: Path
    scratch: Path


def export_shard(kept: Kept, shard: int, settings: ExportSettings, *, out: Path) -> dict:
    """Write one shard into `out`; the images' bytes are checked against their sha256."""
    some = kept.bounds.places(shard)
    places, numbers = (
        np.array(np.load(kept.selected / name, mmap_mode="r")[some])
        for name in ("source.npy", "order.npy")
    )
    return write_shard(out, kept.bounds.name(shard), _samples(kept, places, numbers, settings))


def _samples(
    kept: Kept, places: Int16[np.ndarray, " n"], numbers: Numbers, settings: ExportSettings
) -> Iterator[Sample]:
    """Yield the samples of images, each the number of one in the source at its place.

    Where one of them has a caption, all have a `.txt`, which is empty where there is none: so
    img2dataset writes them, and readers want the same members in every sample.
    """
    wheres = {place: np.flatnonzero(places == place) for place in np.unique(places).tolist()}
    facts = {
        place: kept.sources[place].data.facts(numbers[where]).to_pylist()
        for place, where in wheres.items()
    }
    has_captions = any(fact["caption"] for own in facts.values() for fact in own)
    reads: dict[int, Callable[[], Sample]] = {}
    for place, where in wheres.items():
        own = _reads(kept, place, numbers[where], facts[place], settings, has_captions)
        reads.update(zip(where.tolist(), own, strict=True))
    ahead: deque = deque()
    with ThreadPoolExecutor(FETCH_AHEAD) as pool:
        for at in range(len(numbers)):
            ahead.append(pool.submit(reads[at]))
            if len(ahead) > 2 * FETCH_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _reads(
    kept: Kept,
    place: int,
    numbers: Numbers,
    facts: list[dict[str, Any]],
    settings: ExportSettings,
    has_captions: bool,
) -> Iterator[Callable[[], Sample]]:
    """Yield what reads the sample of each image of a source."""
    source = kept.sources[place]
    parts = source.data.part_of(numbers).tolist()
    nearest: list[tuple[str, float] | tuple[None, None]] = [(None, None)] * len(numbers)
    if place == 0:
        near = kept.nearest.find(numbers)
        keys = kept.nearest.keys(near.places[:, 0], near.images[:, 0])
        nearest = list(zip(keys, near.similarity[:, 0].tolist(), strict=True))

    def read(number: int, part: int, fact: dict[str, Any], nearest: tuple) -> Sample:
        data, found = _bytes(source, number, part, fact)
        original = data
        try:
            if settings.hook:
                data = edit(data, settings.hook, fact["key"], max_pixels=kept.max_pixels)
            edited_by = settings.hook if data is not original else None
            data, extension = encode(data, settings, max_pixels=kept.max_pixels)
        except ImageError as error:
            raise LvdError(f"{fact['key']} was decoded once and now is not: {error}") from error
        row = {
            "url": fact["url"],
            "caption": fact["caption"],
            "original_width": fact["width"],
            "original_height": fact["height"],
            "sha256": fact["sha256"],
            "source_part": fact["part"],
            "source_member": fact["member"],
            "seed_similarity": nearest[1],
            "nearest_seed": nearest[0],
            "edited_by": edited_by,
        }
        beside = {end: x for end, x in zip(settings.members, found, strict=False) if x is not None}
        said = read_object(beside.pop("json", b"{}"))
        if has_captions and not beside.get("txt"):
            beside["txt"] = (fact["caption"] or "").encode("utf-8", "backslashreplace")
        return Sample(fact["key"], data, extension, row, beside, said)

    for each in zip(numbers.tolist(), parts, facts, nearest, strict=True):
        yield partial(read, *each)


def _bytes(
    source: Source, number: int, index: int, fact: Mapping[str, Any]
) -> tuple[bytes, list[bytes | None]]:
    """Return the bytes of an image, which must be those that were embedded, and of its members."""
    part = load_parts(source.parts)[index]
    data: bytes | None = None
    found: list[bytes | None] = []
    if index in source.spills:
        data, *found = read_spilled(source.spills[index], number)
    if data is None:
        data = fetch(part, fact["member"], fact["offset"], fact["bytes"])
    if hashlib.sha256(data).hexdigest() != fact["sha256"]:
        raise changed(part.name)
    return data, found
