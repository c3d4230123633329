"""Composes the pool: a wanted domain in long-tailed numbers among what a crawl also holds.

Wanted classes, other classes as distractors, edited copies of both in heavy-tailed numbers, and
drawn junk; about half of the pool is unwanted. Everything follows from the pictures and one seed.
"""

from __future__ import annotations

import csv
import io
import random
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.edited_copies import EDITS
from curate.sample.charts import chart
from curate.sample.pages import document, placeholder, screenshot

HELD_OUT = range(20, 30)
"""Training shards of Tiny-ImageNet that no bundled model has seen: the pool is made of them."""
SHOWN, ASKED = range(10), range(10, 20)
"""Those whose wanted classes are labelled for scoring, and those that are classified, beside all of val."""
TRUTH = "truth.csv"
POOL, SEED, LABELLED, TEST, TAIL = "pool", "seed", "labelled", "test", "tail"
"""The folders: what is curated, the seed; labelled pictures, and those to be classified."""
IN_A_SHARD = 1000


@dataclass(frozen=True)
class Composition:
    """What the pool is made of."""

    wanted: int = 40
    """Classes; the others are distractors."""
    seeds: int = 20
    """Pictures of each wanted class that are the seed, and not in the pool."""
    head: int = 80
    """Pictures of the most frequent wanted class."""
    tail: int = 8
    """And of the rarest: a geometric series between."""
    copies: float = 0.8
    """Copies of wanted pictures for each wanted picture."""
    most_copies: int = 60
    """Of one picture."""
    exponent: float = 1.6
    """Of the numbers of copies of a copied picture: P(n) falls as n to this power."""
    junk: float = 0.12
    """Of the pool: charts, screens, documents and one placeholder again and again."""
    seed: int = 0


@dataclass(frozen=True)
class Item:
    """A picture of the pool, and what is known of it."""

    data: bytes
    kind: str
    """`wanted`, `distractor` or `junk`."""
    label: int = -1
    copy_of: int = -1
    """The place, in the list that `compose` returns, of the picture that it is a copy of."""
    edit: str = ""


@dataclass(frozen=True)
class Pool:
    """The pool and the seed, in the order in which they are written."""

    items: list[Item]
    seeds: list[tuple[int, bytes]]
    """Label and JPEG."""
    wanted: list[int]
    """The labels of the wanted classes, the most frequent first."""


def read_labelled(tars: Sequence[Path]) -> dict[int, list[bytes]]:
    """Return the pictures of each class of tars that hold a `.jpg` and a `.cls` for each."""
    pictures: dict[int, list[bytes]] = {}
    for path in tars:
        with tarfile.open(path) as tar:
            found: dict[str, dict[str, bytes]] = {}
            for member in tar:
                stem, _, kind = member.name.rpartition(".")
                file = tar.extractfile(member)
                if file is not None:
                    found.setdefault(stem, {})[kind] = file.read()
            for sample in found.values():
                if {"jpg", "cls"} <= sample.keys():
                    pictures.setdefault(int(sample["cls"]), []).append(sample["jpg"])
    return pictures


def compose(pictures: Mapping[int, Sequence[bytes]], settings: Composition) -> Pool:
    """Return the pool that `settings` ask for, of labelled pictures.

    Raises ValueError where there are too few classes or pictures.
    """
    rng = np.random.default_rng(settings.seed)
    labels = sorted(pictures)
    if len(labels) <= settings.wanted:
        raise ValueError(f"{len(labels)} classes are too few to want {settings.wanted} of them")
    order = rng.permutation(labels).tolist()
    wanted, others = order[: settings.wanted], order[settings.wanted :]
    seeds: list[tuple[int, bytes]] = []
    items: list[Item] = []
    sizes = np.geomspace(settings.head, settings.tail, settings.wanted).round().astype(int)
    for label, size in zip(wanted, sizes.tolist(), strict=True):
        of_class = [pictures[label][n] for n in rng.permutation(len(pictures[label]))]
        if len(of_class) < settings.seeds + size:
            raise ValueError(
                f"class {label} has {len(of_class)} pictures, {settings.seeds + size} are needed"
            )
        seeds += [(label, data) for data in of_class[: settings.seeds]]
        kept = of_class[settings.seeds : settings.seeds + size]
        items += [Item(data, "wanted", label) for data in kept]
    items += _copies(items, range(len(items)), settings, rng)
    unwanted = len(items)
    junk = round(settings.junk * 2 * unwanted)
    distractors = [(label, data) for label in others for data in pictures[label]]
    originals = round((unwanted - junk) / (1 + settings.copies))
    if len(distractors) < originals:
        raise ValueError(f"{len(distractors)} distractors are too few: {originals} are needed")
    first = len(items)
    items += [
        Item(distractors[n][1], "distractor", distractors[n][0])
        for n in rng.choice(len(distractors), originals, replace=False)
    ]
    items += _copies(items, range(first, len(items)), settings, rng)
    items += _junk(junk, settings.seed)
    return _shuffled(items, seeds, wanted, rng)


def _copies(
    items: Sequence[Item], of: range, settings: Composition, rng: np.random.Generator
) -> list[Item]:
    """Return copies of some of the items at `of`: of a few very many, of most none."""
    count = round(settings.copies * len(of))
    numbers = np.arange(1, settings.most_copies + 1)
    shares = numbers**-settings.exponent
    copies: list[Item] = []
    for source in rng.permutation(of).tolist():
        if len(copies) >= count:
            break
        drawn = int(rng.choice(numbers, p=shares / shares.sum()))
        for _ in range(min(drawn, count - len(copies))):
            name = list(EDITS)[int(rng.integers(len(EDITS)))]
            picture = Image.open(io.BytesIO(items[source].data)).convert("RGB")
            data = jpeg(EDITS[name](picture, rng), int(rng.integers(70, 96)))
            copies.append(Item(data, items[source].kind, items[source].label, source, name))
    return copies


def _junk(count: int, seed: int) -> list[Item]:
    """Return drawn pictures, a tenth of them the same placeholder."""
    chosen = random.Random(seed)
    grey = jpeg(placeholder(), 90)
    draw = (chart, screenshot, document)
    made = []
    for number in range(count):
        picture = None if number % 10 == 0 else draw[number % 3](chosen)
        made.append(Item(grey if picture is None else jpeg(picture, 90), "junk"))
    return made


def _shuffled(
    items: list[Item],
    seeds: list[tuple[int, bytes]],
    wanted: list[int],
    rng: np.random.Generator,
) -> Pool:
    order = rng.permutation(len(items))
    place = {int(old): new for new, old in enumerate(order)}
    moved = [items[old] for old in order]
    return Pool(
        [Item(i.data, i.kind, i.label, place.get(i.copy_of, -1), i.edit) for i in moved],
        seeds,
        wanted,
    )


def write(pool: Pool, out: Path) -> None:
    """Write the pool as tars, the seed as a folder, and what is known as `truth.csv`."""
    shards = out / POOL
    shards.mkdir(parents=True)
    with (out / TRUTH).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "kind", "label", "copy_of", "edit"])
        keys = [key_of(n) for n in range(len(pool.items))]
        for key, item in zip(keys, pool.items, strict=True):
            source = keys[item.copy_of] if item.copy_of >= 0 else ""
            rows.writerow([key, item.kind, item.label, source, item.edit])
    for start in range(0, len(pool.items), IN_A_SHARD):
        some = pool.items[start : start + IN_A_SHARD]
        write_tar(
            shards / f"{start // IN_A_SHARD:05d}.tar",
            ((f"{start + n:06d}.jpg", item.data) for n, item in enumerate(some)),
        )
    seed = out / SEED
    seed.mkdir()
    for number, (_, data) in enumerate(pool.seeds):
        (seed / f"{number:05d}.jpg").write_bytes(data)


def write_labelled(
    pictures: Mapping[int, Sequence[bytes]], labels: Sequence[int], out: Path
) -> None:
    """Write the pictures of some classes as one tar with a `.cls` for each, for scoring."""
    out.mkdir(parents=True)
    write_tar(
        out / "00000.tar",
        (
            (f"{label:04d}-{n:05d}.{end}", content)
            for label in labels
            for n, data in enumerate(pictures[label])
            for end, content in (("jpg", data), ("cls", str(label).encode()))
        ),
    )


def key_of(number: int) -> str:
    """Return the key that stage one gives to the picture at a place of the pool."""
    return f"{number // IN_A_SHARD:05d}/{number:06d}"


def write_tar(path: Path, members: Iterator[tuple[str, bytes]]) -> None:
    """Write members as they come, without times."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def jpeg(picture: Image.Image, quality: int) -> bytes:
    """Return a picture as JPEG."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
