"""The built-in sample: a plausible little crawl and a seed, made without any download.

Crops and edits of photographs that ship inside the scikit-image and scikit-learn wheels, drawn
charts, screenshots and documents, copies, a placeholder and broken files, with the truth about each.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import shutil
import tarfile
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from PIL import Image

from curate.sample import edits
from curate.sample.charts import chart
from curate.sample.pages import document, placeholder, screenshot
from curate.sample.photographs import OTHER_SUBJECTS, SEED_SUBJECTS, TEXTURES, Crop, crops
from shared.errors import LvdError
from shared.storage.locks import locked

_MARK = "sample.json"  # its presence with the right content says that the folder is complete
_LIBRARIES = ("matplotlib", "numpy", "pillow", "scikit-image", "scikit-learn")
_TARS = 6
_FEWEST = 100
_SHARES = {  # of the images that are neither broken nor odd
    "photograph": 0.22,
    "object": 0.12,
    "texture": 0.07,
    "chart": 0.14,
    "screenshot": 0.07,
    "document": 0.07,
    "placeholder": 0.07,
    "copy of a photograph": 0.19,
    "copy of a drawing": 0.05,
}
_SEEDS_PER_PHOTOGRAPH = 1 / 3
_DRAW = {"chart": chart, "screenshot": screenshot, "document": document}


@dataclass(frozen=True, eq=False)
class _Item:
    """One member to be: `origin` is the item that it is a copy of."""

    kind: str
    subject: str
    data: bytes
    extension: str
    origin: _Item | None = None
    transform: str = ""


def make_sample(out: Path, seed: int = 0, images: int = 600) -> dict[str, Any]:
    """Write `images` crawled images and their seed into the folder `out`, and return what is there.

    `out/crawl/00000.tar` to `00005.tar` are WebDataset shards, `out/seed/*.jpg` the seed, and
    `out/truth.csv` has the part, member stem, kind, copy_of (a stem) and transform of each crawled
    image. The content depends on the arguments and the library versions alone. It appears under
    its name when it is complete; a complete one is left as it is. Returns the paths `crawl`,
    `seed` and `truth`, the numbers of `images`, `seed_images` and images of each of `kinds`, and
    whether it was `built`. LvdError when `out` holds something else.
    """
    out = Path(out)
    if images < _FEWEST:
        raise LvdError(f"a sample of {images} images is too small: ask for at least {_FEWEST}")
    wanted = {"seed": seed, "images": images, "made_by": _made_by()}
    facts = _complete(out, wanted)
    built = facts is None
    if facts is None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with locked(out.parent / ".lock", None):
                _refuse_foreign(out)
                facts = _complete(out, wanted) or _build(out, seed, images, wanted)
        except OSError as error:
            raise LvdError(
                f"the built-in sample cannot be written to {out}: {error.strerror or error}: "
                "name a folder that you may write to, with 25 MB to spare"
            ) from None
    places = {name: str(out / name) for name in ("crawl", "seed")}
    return {**places, "truth": str(out / "truth.csv"), **facts["counts"], "built": built}


def _build(out: Path, seed: int, images: int, wanted: dict[str, Any]) -> dict[str, Any]:
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "crawl").mkdir(parents=True)
    (partial / "seed").mkdir()
    items, seeds = _items(seed, images)
    for crop in seeds:
        image = _resized(crop, random.Random(f"{seed}/{crop.box}"))
        path = partial / "seed" / f"{crop.subject}-{crop.number:03d}.jpg"
        path.write_bytes(edits.encode(image, "jpg", quality=92))
    _write_crawl(partial, items, random.Random(f"{seed}/order"))
    kinds = dict(sorted(Counter(item.kind for item in items).items()))
    counts = {"images": len(items), "seed_images": len(seeds), "kinds": kinds}
    facts = {**wanted, "counts": counts, "sizes": _sizes(partial)}
    (partial / _MARK).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return facts


def _items(seed: int, images: int) -> tuple[list[_Item], list[Crop]]:
    """Return the crawl's items, in no particular order, and the seed's crops."""
    chosen = random.Random(f"{seed}/items")
    small = _small(chosen)
    counts = _counts(images - len(edits.BROKEN) - len(edits.ODD) - len(small))
    wanted_seeds = round(counts["photograph"] * _SEEDS_PER_PHOTOGRAPH)
    found = crops(SEED_SUBJECTS, counts["photograph"] + wanted_seeds, f"{seed}")
    found.sort(key=lambda crop: (crop.number % 2 == 0, crop.number))  # seeds: every other large one
    seeds, found = found[:wanted_seeds], found[wanted_seeds:]
    groups = {
        "photograph": found,
        "object": crops(OTHER_SUBJECTS, counts["object"], f"{seed}"),
        "texture": crops(TEXTURES, counts["texture"], f"{seed}"),
    }
    cropped = [
        _Item(kind, crop.subject, *_encoded(_resized(crop, chosen), chosen, 0.85))
        for kind, group in groups.items()
        for crop in group
    ]
    drawn = [
        _Item(kind, kind, *_encoded(draw(random.Random(f"{seed}/{kind}/{i}")), chosen, 0.45))
        for kind, draw in _DRAW.items()
        for i in range(counts[kind])
    ]
    photographs = [item for item in cropped if item.kind != "texture"]
    jpegs = [item for item in photographs if item.extension == "jpg"]
    sources = chosen.sample(jpegs, len(edits.ODD))
    odd = [
        _Item("odd", item.subject, *edits.odd(item.data, encoding), item, encoding)
        for item, encoding in zip(sources, edits.ODD, strict=True)
    ]
    copied = [item for item in photographs if item not in sources]
    broken = [
        _Item(
            "corrupt", "lost", *edits.broken(chosen.choice(jpegs).data, fault, chosen), None, fault
        )
        for fault in edits.BROKEN
    ]
    items = [*cropped, *drawn, *small, *odd, *broken, *_placeholders(counts["placeholder"], chosen)]
    items += _copies(copied, counts["copy of a photograph"], chosen)
    items += _copies(drawn, counts["copy of a drawing"], chosen)
    return items, seeds


def _counts(images: int) -> dict[str, int]:
    """Deal `images` to the kinds by their shares: every kind rounded down, then the first ones up."""
    counts = {kind: int(images * share) for kind, share in _SHARES.items()}
    for kind in islice(cycle(_SHARES), images - sum(counts.values())):
        counts[kind] += 1
    return counts


def _resized(crop: Crop, chosen: random.Random) -> Image.Image:
    long_side = max(crop.image.size)
    scale = min(max(long_side * chosen.uniform(0.8, 1.2), 240), 480) / long_side
    size = (round(crop.image.width * scale), round(crop.image.height * scale))
    return crop.image.resize(size, Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, chosen: random.Random, jpegs: float) -> tuple[bytes, str]:
    """Return a file and its extension: a JPEG with probability `jpegs`, else mostly PNG."""
    rest = (1 - jpegs) / 10
    weights = (jpegs, 6 * rest, 3 * rest, rest)
    extension = chosen.choices(("jpg", "png", "webp", "gif"), weights)[0]
    return edits.encode(image, extension, quality=chosen.randint(78, 93)), extension


def _copies(sources: list[_Item], count: int, chosen: random.Random) -> list[_Item]:
    pairs = zip(chosen.choices(sources, k=count), cycle(edits.COPIES), strict=False)
    return [
        _Item(item.kind, "mirror", *edits.copy(item.data, item.extension, name), item, name)
        for item, name in pairs
    ]


def _placeholders(count: int, chosen: random.Random) -> list[_Item]:
    """Return one placeholder picture `count` times: half of it byte by byte, half re-encoded."""
    picture = placeholder()
    first = _Item("placeholder", "gone", edits.encode(picture, "jpg", quality=90), "jpg")
    items = [first]
    for i in range(count - 1):
        data = first.data
        if i % 2 == 0:
            data = edits.encode(picture, "jpg", quality=chosen.randint(40, 85))
        transform = "exact" if i % 2 else "jpeg"
        items.append(_Item("placeholder", "gone", data, "jpg", first, transform))
    return items


def _small(chosen: random.Random) -> list[_Item]:
    """Return images that are whole but worth nothing: a tracking pixel, a banner, blank ones."""
    shade = chosen.randint(235, 250)
    pictures = (
        ("tiny", "1x1", (1, 1), "white", "gif"),
        ("tiny", "banner", (600, 24), (200, 40, 40), "png"),
        ("blank", "white", (320, 240), "white", "jpg"),
        ("blank", "shade", (300, 300), (shade, shade, 255), "png"),
    )
    return [
        _Item(
            kind,
            kind,
            edits.encode(Image.new("RGB", size, colour), extension),
            extension,
            None,
            name,
        )
        for kind, name, size, colour, extension in pictures
    ]


def _write_crawl(folder: Path, items: list[_Item], chosen: random.Random) -> None:
    """Write the tars and the truth: stems numbered in one random order, members in another."""
    numbers = chosen.sample(range(len(items)), len(items))
    stems = {id(item): f"i{number:05d}" for item, number in zip(items, numbers, strict=True)}
    order = chosen.sample(items, len(items))
    with (folder / "truth.csv").open("w", newline="") as file:
        truth = csv.writer(file, lineterminator="\n")
        truth.writerow(("part", "member", "kind", "copy_of", "transform"))
        for number in range(_TARS):
            members = order[number * len(order) // _TARS : (number + 1) * len(order) // _TARS]
            path = folder / "crawl" / f"{number:05d}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for item in members:
                    stem = stems[id(item)]
                    record = {"caption": item.subject, "url": f"sample:{item.subject}/{stem[1:]}"}
                    _add(tar, f"{stem}.{item.extension}", item.data)
                    _add(tar, f"{stem}.json", json.dumps(record, sort_keys=True).encode())
                    copy_of = stems[id(item.origin)] if item.origin else ""
                    truth.writerow((path.stem, stem, item.kind, copy_of, item.transform))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _complete(out: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Return the mark of a complete sample of the `wanted` kind in `out`, or None."""
    try:
        facts = json.loads((out / _MARK).read_text())
        return facts if facts == {**facts, **wanted, "sizes": _sizes(out)} else None
    except (OSError, ValueError, TypeError):
        return None


def _refuse_foreign(out: Path) -> None:
    if out.is_dir() and (any(out.iterdir()) and not (out / _MARK).is_file()):
        raise LvdError(f"{out} holds files that are no built-in sample: name another folder for it")
    if out.exists() and not out.is_dir():
        raise LvdError(f"{out} is a file: name a folder for the built-in sample")


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files if p.name != _MARK}


def _made_by() -> dict[str, str]:
    """Return what decides the sample's bytes: a hash of this package's code, library versions."""
    code = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    return {"code": code.hexdigest(), **{name: version(name) for name in _LIBRARIES}}
