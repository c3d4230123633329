"""Stage export: the kept images as WebDataset shards, in the order that `selection/decide.py` dealt them.

Units: `spill` (map over the parts whose bytes cannot be fetched by offset: compressed tars and
Parquet; their kept members are laid down once) and one unit a shard, which fetches its images from
wherever they are. A shard is three files side by side, of which `_stats.json` is renamed last.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curate.catalogue.collection import Catalogued, Collection, Numbers
from curate.catalogue.originals import Originals, changed, load_parts, save_parts
from curate.filters.decisions import CODE
from curate.retrieval.nearest_seeds import NearestSeeds
from curate.selection.decide import Selected
from curate.stage import Runner, Unit
from shared.errors import LvdError
from shared.images import ImageError
from shared.parts import Part, direct, fetch
from shared.shards import SHARD_CAPACITY, Sample, shard_name, to_jpeg, write_shard

VERSION = 1
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


@dataclass(frozen=True)
class Source:
    """Where the kept images are: the crawl and its parts, and what was decided and found."""

    crawl: Collection
    parts: Path
    """What `originals.save_parts` wrote."""
    selected: Path
    nearest: NearestSeeds
    spills: dict[int, Path]
    max_pixels: int
    """What the crawl's pictures were admitted under."""


def export(
    runner: Runner,
    folders: ExportFolders,
    crawl: Catalogued,
    selected: Selected,
    nearest: NearestSeeds,
    settings: ExportSettings,
    max_pixels: int,
) -> None:
    """Write the kept images as shards below `folders.shards`."""
    kept, size = selected.decisions["kept"], settings.shard_size
    with runner.at_work("export"):
        source = Source(
            crawl=crawl.collection,
            parts=save_parts(crawl.parts, runner.scratch / f"parts-{crawl.address}.json"),
            selected=selected.folder,
            nearest=nearest,
            spills={},
            max_pixels=max_pixels,
        )
        spilled = [
            (index, part) for index, part in enumerate(crawl.parts) if kept and needs_spill(part)
        ]
        units = [Unit(f"spill-{index:08d}", (source, index, part)) for index, part in spilled]
        runner.run(folders.spill, spill, units, scratch=folders.scratch)
        source.spills.update(
            {
                index: folders.spill / unit.name
                for (index, _), unit in zip(spilled, units, strict=True)
            }
        )
        units = [
            Unit(shard_name(shard), (source, shard, settings), min(size, kept - shard * size))
            for shard in range(-(-kept // size))
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
    crawl = source.crawl
    decision = np.load(source.selected / "decision.npy", mmap_mode="r")
    first, last = crawl.starts[index : index + 2].tolist()
    numbers = np.flatnonzero(decision[first:last] == CODE["kept"]) + first
    offsets = [0]
    with (
        Originals(crawl, load_parts(source.parts), out.parent) as originals,
        (out / "images.bin").open("wb") as stream,
    ):
        for number in numbers:
            offsets.append(offsets[-1] + stream.write(originals.read(number)))
    np.save(out / "numbers.npy", numbers)
    np.save(out / "offsets.npy", np.array(offsets, np.int64))
    return {"images": len(numbers)}


def export_shard(source: Source, shard: int, settings: ExportSettings, *, out: Path) -> dict:
    """Write one shard into `out`; the images' bytes are checked against their sha256."""
    order = np.load(source.selected / "order.npy", mmap_mode="r")
    first = shard * settings.shard_size
    numbers = np.array(order[first : first + settings.shard_size])
    return write_shard(out, shard_name(shard), _samples(source, numbers, settings))


def _samples(source: Source, numbers: Numbers, settings: ExportSettings) -> Iterator[Sample]:
    facts = source.crawl.facts(numbers).to_pylist()
    near = source.nearest.find(numbers)
    nearest = source.nearest.keys(near.places[:, 0], near.images[:, 0])
    parts = source.crawl.part_of(numbers)

    def make(at: int) -> Sample:
        fact = facts[at]
        data = _bytes(source, int(numbers[at]), int(parts[at]), fact)
        try:
            data, extension = to_jpeg(data, settings.encode, max_pixels=source.max_pixels)
        except ImageError as error:
            raise LvdError(f"{fact['key']} was decoded once and now is not: {error}") from error
        row = {
            "url": fact["url"],
            "caption": fact["caption"],
            "sha256": fact["sha256"],
            "source_part": fact["part"],
            "source_member": fact["member"],
            "seed_similarity": float(near.similarity[at, 0]),
            "nearest_seed": nearest[at],
        }
        return Sample(key=fact["key"], data=data, extension=extension, row=row)

    ahead: deque = deque()
    with ThreadPoolExecutor(FETCH_AHEAD) as pool:
        for at in range(len(numbers)):
            ahead.append(pool.submit(make, at))
            if len(ahead) > 2 * FETCH_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


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
