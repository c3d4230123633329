"""Lays down what shards cannot fetch from where it is: images of compressed tars and of Parquet
files, and what lies beside images, which is found by going through a part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from curate.catalogue.collection import Collection
from curate.catalogue.originals import changed
from shared.datasets.dataset import Part
from shared.datasets.parts import PartReader
from shared.datasets.single_images import direct

BYTES, NUMBERS, RANGES = "spilled.bin", "numbers.npy", "ranges.npy"
"""The bytes; int64 [n], the images; int64 [n, 1 + members, 2], place and size in the bytes of each
image and of what lies beside it, -1 where that is not there."""


@dataclass(frozen=True)
class Source:
    """A dataset with kept images: the crawl, or a seed that is included."""

    data: Collection
    parts: Path
    """What `originals.save_parts` wrote."""
    position: Path
    """Where `select` says which images are kept."""
    first: int
    """The place of the first of them that is to be written."""
    spills: dict[int, Path]


def needs_spill(part: Part) -> bool:
    """Return whether a part's bytes must be laid down before shards can fetch them."""
    return not direct(part)


def spill(
    source: Source, index: int, part: Part, members: Sequence[str], *, out: Path
) -> dict[str, Any]:
    """Lay down the `members` of the kept images of a part, and the images that need it."""
    first, last = source.data.starts[index : index + 2].tolist()
    rows = np.flatnonzero(np.load(source.position, mmap_mode="r")[first:last] >= source.first)
    ranges = np.full((len(rows), 1 + len(members), 2), -1, np.int64)
    with (out / BYTES).open("wb") as stream:
        laid = _read(source, index, part, members, rows, out.parent) if len(rows) else iter(())
        for row, each in enumerate(laid):
            for column, data in enumerate(each):
                if data is not None:
                    ranges[row, column] = stream.tell(), len(data)
                    stream.write(data)
    np.save(out / NUMBERS, rows + first)
    np.save(out / RANGES, ranges)
    return {"images": len(rows)}


def read_spilled(folder: Path, number: int) -> list[bytes | None]:
    """Return the bytes of an image, and of each of its members, None where they are not there."""
    row = int(np.searchsorted(np.load(folder / NUMBERS, mmap_mode="r"), number))
    found: list[bytes | None] = []
    with (folder / BYTES).open("rb") as stream:
        for place, size in np.load(folder / RANGES, mmap_mode="r")[row].tolist():
            stream.seek(max(place, 0))
            found.append(stream.read(size) if size >= 0 else None)
    return found


def _read(
    source: Source,
    index: int,
    part: Part,
    members: Sequence[str],
    rows: Int64[np.ndarray, " n"],
    scratch: Path,
) -> Iterator[list[bytes | None]]:
    """Yield for each row of a part its image, None where shards fetch that, and its members."""
    facts = source.data.facts_of_part(index, ["sha256"], rows).to_pylist()
    with_images = needs_spill(part)
    with PartReader(part, scratch, beside=members) as reader:
        images = {image.key: image for image in reader.members}
        for fact in facts:
            image = images.get(fact["key"])
            if image is None or image.problem:
                raise changed(part.name)
            data = reader.read(image) if with_images else None
            if data is not None and hashlib.sha256(data).hexdigest() != fact["sha256"]:
                raise changed(part.name)
            beside = reader.read_beside(image)
            yield [data, *(beside.get(member) for member in members)]
