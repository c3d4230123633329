"""Stage export: the kept images as WebDataset shards, in the order that `selection/decide.py` dealt them.

Units: `spill` (map over the parts whose bytes cannot be fetched by offset: compressed tars and
Parquet; their kept members are laid down once) and one unit a shard, which fetches its images from
wherever they are. A shard is three files side by side, of which `_stats.json` is renamed last.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int16
from pydantic import BaseModel, ConfigDict, Field

from curate.catalogue.collection import Catalogued, Collection, Numbers
from curate.catalogue.originals import Originals, changed, load_parts, save_parts
from curate.export.hook import edit
from curate.retrieval.nearest_seeds import NearestSeeds
from curate.selection.decide import Selected
from curate.stage import Runner, Unit
from shared.errors import LvdError
from shared.images import ImageError
from shared.parts import Part, direct, fetch
from shared.shards import SHARD_CAPACITY, Sample, shard_name, to_jpeg, write_shard

VERSION = 2
FETCH_AHEAD = 8


class ExportSettings(BaseModel):
    """How the kept images are written."""

    model_config = ConfigDict(extra="forbid")

    shard_size: int = Field(1_000, ge=1, le=SHARD_CAPACITY)
    """Images of one shard."""
    encode: Literal["auto", "never"] = "auto"
    """auto: what is not a JPEG becomes one, of quality 95. never: all bytes are kept."""
    seed: int = 0
    """Seed of the hash that orders the images."""
    hook: str | None = Field(None, pattern=r"^[\w.]+:\w+$")
    """package.module:function that is given each picture and returns it, or an edited one, which is
    what is written; a change of the function's code is not noticed."""


@dataclass(frozen=True)
class Source:
    """A dataset with kept images: the crawl, or a seed that is included."""

    data: Collection
    parts: Path
    """What `originals.save_parts` wrote."""
    position: Path
    """Where `select` says which images are kept."""
    spills: dict[int, Path]


@dataclass(frozen=True)
class Kept:
    """Where the kept images are, and what was decided and found."""

    sources: tuple[Source, ...]
    """The crawl first."""
    selected: Path
    nearest: NearestSeeds
    max_pixels: int
    """What the pictures were admitted under."""


def export(
    runner: Runner,
    folders: ExportFolders,
    datasets: Sequence[Catalogued],
    selected: Selected,
    nearest: NearestSeeds,
    settings: ExportSettings,
    max_pixels: int,
) -> None:
    """Write the kept images of the crawl and the included seeds as shards below `folders.shards`."""
    exported, size = selected.exported, settings.shard_size
    with runner.at_work("export"):
        sources = tuple(
            Source(
                data=each.collection,
                parts=save_parts(each.parts, runner.scratch / f"parts-{each.address}.json"),
                position=selected.folder / f"position-{place}.npy",
                spills={},
            )
            for place, each in enumerate(datasets)
        )
        spilled = [
            (Unit(f"spill-{place}-{index:08d}", (source, index, part)), source, index)
            for place, (source, each) in enumerate(zip(sources, datasets, strict=True))
            for index, part in enumerate(each.parts)
            if exported and needs_spill(part)
        ]
        units = [unit for unit, _, _ in spilled]
        runner.run(folders.spill, spill, units, scratch=folders.scratch)
        for unit, source, index in spilled:
            source.spills[index] = folders.spill / unit.name
        kept = Kept(sources, selected.folder, nearest, max_pixels)
        units = [
            Unit(shard_name(shard), (kept, shard, settings), min(size, exported - shard * size))
            for shard in range(-(-exported // size))
        ]
        runner.run(folders.shards, export_shard, units, scratch=folders.scratch, flat=True)


@runtime_checkable
class ExportFolders(Protocol):
    """Where a result is built; all on one file system."""

    shards: Path
    spill: Path
    scratch: Path


def spill(source: Source, index: int, part: Part, *, out: Path) -> dict:
    """Lay the kept images of a part side by side in `images.bin`, with their `offsets.npy`."""
    position = np.load(source.position, mmap_mode="r")
    first, last = source.data.starts[index : index + 2].tolist()
    numbers = np.flatnonzero(position[first:last] >= 0) + first
    offsets = [0]
    with (
        Originals(source.data, load_parts(source.parts), out.parent) as originals,
        (out / "images.bin").open("wb") as stream,
    ):
        for number in numbers:
            offsets.append(offsets[-1] + stream.write(originals.read(number)))
    np.save(out / "numbers.npy", numbers)
    np.save(out / "offsets.npy", np.array(offsets, np.int64))
    return {"images": len(numbers)}


def export_shard(kept: Kept, shard: int, settings: ExportSettings, *, out: Path) -> dict:
    """Write one shard into `out`; the images' bytes are checked against their sha256."""
    first = shard * settings.shard_size
    some = slice(first, first + settings.shard_size)
    places, numbers = (
        np.array(np.load(kept.selected / name, mmap_mode="r")[some])
        for name in ("source.npy", "order.npy")
    )
    return write_shard(out, shard_name(shard), _samples(kept, places, numbers, settings))


def _samples(
    kept: Kept, places: Int16[np.ndarray, " n"], numbers: Numbers, settings: ExportSettings
) -> Iterator[Sample]:
    """Yield the samples of images, each the number of one in the source at its place."""
    reads: dict[int, Callable[[], Sample]] = {}
    for place in np.unique(places).tolist():
        where = np.flatnonzero(places == place)
        own = _reads(kept, place, numbers[where], settings)
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
    kept: Kept, place: int, numbers: Numbers, settings: ExportSettings
) -> Iterator[Callable[[], Sample]]:
    """Yield what reads the sample of each image of a source."""
    source = kept.sources[place]
    facts = source.data.facts(numbers).to_pylist()
    parts = source.data.part_of(numbers).tolist()
    nearest: list[tuple[str, float] | tuple[None, None]] = [(None, None)] * len(numbers)
    if place == 0:
        near = kept.nearest.find(numbers)
        keys = kept.nearest.keys(near.places[:, 0], near.images[:, 0])
        nearest = list(zip(keys, near.similarity[:, 0].tolist(), strict=True))

    def read(number: int, part: int, fact: dict, nearest: tuple) -> Sample:
        original = data = _bytes(source, number, part, fact)
        try:
            if settings.hook:
                data = edit(data, settings.hook, fact["key"], max_pixels=kept.max_pixels)
            edited_by = settings.hook if data is not original else None
            data, extension = to_jpeg(data, settings.encode, max_pixels=kept.max_pixels)
        except ImageError as error:
            raise LvdError(f"{fact['key']} was decoded once and now is not: {error}") from error
        row = {
            "url": fact["url"],
            "caption": fact["caption"],
            "sha256": fact["sha256"],
            "source_part": fact["part"],
            "source_member": fact["member"],
            "seed_similarity": nearest[1],
            "nearest_seed": nearest[0],
            "edited_by": edited_by,
        }
        return Sample(key=fact["key"], data=data, extension=extension, row=row)

    for each in zip(numbers.tolist(), parts, facts, nearest, strict=True):
        yield partial(read, *each)


def _bytes(source: Source, number: int, index: int, fact: dict) -> bytes:
    """Return the bytes of an image, which must be those that were embedded."""
    part = load_parts(source.parts)[index]
    if index in source.spills:
        data = _spilled(source.spills[index], number)
    else:
        data = fetch(part, fact["member"], fact["offset"], fact["bytes"])
    if hashlib.sha256(data).hexdigest() != fact["sha256"]:
        raise changed(part.name)
    return data


def _spilled(folder: Path, number: int) -> bytes:
    row = int(np.searchsorted(np.load(folder / "numbers.npy", mmap_mode="r"), number))
    offsets = np.load(folder / "offsets.npy", mmap_mode="r")
    with (folder / "images.bin").open("rb") as stream:
        stream.seek(offsets[row])
        return stream.read(int(offsets[row + 1] - offsets[row]))


def needs_spill(part: Part) -> bool:
    """Return whether a part's bytes must be laid down before shards can fetch them."""
    return not direct(part)
