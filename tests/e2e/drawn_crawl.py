"""Draws the small crawl, seeds and holdout that the end-to-end tests curate."""

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

CONFIG = """
datasets:
  crawl: {path: DATA/crawl}
  animals: {path: DATA/animals}
  plants: {path: DATA/plants}
  exam: {path: DATA/exam}
  missing: {path: DATA/nowhere}
embedders:
  descriptor: {kind: descriptor, thresholds: {dedup: 0.85, retrieve: 0.2}}
pipelines:
  default:
    crawl: crawl
    seed: animals
    holdouts: [exam]
    embedder: descriptor
    filters: [{column: nsfw, max: 0.5}]
    calibrate: {originals: 8, crawl_sample: 12}
    cluster: {clusters: 4}
    export: {shard_size: 8}
    report: {pictures: false}
    engine: {workers: 2}
"""

COPIES = {
    "00001/twin0": "00000/wave00",
    "00001/twin1": "00000/wave00",
    "00003/twin2": "00000/wave00",
}
"""Crawled keys with the same bytes as another."""
NEAR = {f"00001/near{n}": f"00000/wave{n:02d}" for n in range(1, 5)}
"""Crawled keys that are a smaller, recompressed picture of another."""
HELD = ("00003/held0", "00003/held1", "00003/held1copy")
"""Copies of holdout images, and a copy of one of them."""
CORRUPT = ("00003/cut", "00003/text", "00003/empty", "00003/unread")
LOW_QUALITY = ("00003/small", "00003/blank", "00003/long")
UNSAFE = ("00000/wave08", "00003/unsafe")
"""The same bytes as nothing else, and a score above 0.5 or none."""


def wave(number: int) -> Image.Image:
    """Return a soft, noisy pattern: relevant to the seeds, and unlike the others."""
    rng = np.random.default_rng([1, number])
    y, x = np.mgrid[0:1:96j, 0:1:128j]
    pattern = sum(
        np.sin(2 * np.pi * (rng.uniform(0.5, 5) * x + rng.uniform(0.5, 5) * y) + rng.uniform(0, 7))
        for _ in range(5)
    )
    colour, strength = rng.uniform(60, 160, 3), rng.uniform(10, 30, 3)
    noise = rng.normal(0, 6, (96, 128, 3))
    pixels = colour + strength * pattern[..., None] + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def chart(number: int) -> Image.Image:
    """Return a drawing in flat colours: irrelevant to the seeds."""
    rng = np.random.default_rng([2, number])
    image = Image.new("RGB", (128, 96), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        left, top, width, height = rng.integers([0, 0, 8, 4], [110, 88, 50, 30]).tolist()
        colour = tuple(rng.choice([0, 40, 128, 255], 3).tolist())
        draw.rectangle((left, top, left + width, top + height), fill=colour)
    return image


def encoded(image: Image.Image, kind: str = "JPEG", scale: float = 1, quality: int = 90) -> bytes:
    """Return the image's file."""
    stream = io.BytesIO()
    if scale != 1:
        image = image.resize([round(side * scale) for side in image.size])
    image.save(stream, kind, quality=quality)
    return stream.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    """Write a tar, compressed if its name says so."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    data = stream.getvalue()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _with_notes(images: dict[str, bytes], nsfw: dict[str, float]) -> dict[str, bytes]:
    files = {}
    for name, data in images.items():
        trunk = name.partition(".")[0]
        note = {"url": f"https://example.org/{trunk}", "nsfw": nsfw.get(trunk, 0.1)}
        files |= {name: data, f"{trunk}.json": json.dumps(note).encode(), f"{trunk}.txt": b"a wave"}
    return files


def _tars() -> dict[str, dict[str, bytes]]:
    waves = {n: encoded(wave(n)) for n in range(32)}
    charts = {n: encoded(chart(n)) for n in range(6)}
    first = {f"wave{n:02d}.jpg": waves[n] for n in range(10)}
    first |= {f"chart{n}.jpg": charts[n] for n in range(4)}
    second = {f"wave{n}.jpg": waves[n] for n in range(10, 18)}
    second |= {"twin0.jpg": waves[0], "twin1.jpg": waves[0]}
    second |= {f"near{n}.jpg": encoded(wave(n), "JPEG", 0.75, 60) for n in range(1, 5)}
    second |= {f"chart{n}.jpg": charts[n] for n in range(4, 6)}
    third = {f"wave{n}.jpg": waves[n] for n in range(18, 22)}
    third["png.png"] = encoded(wave(22), "PNG")
    third["webp.webp"] = encoded(wave(23), "WEBP")
    third["gif.gif"] = encoded(wave(24), "GIF")
    fourth = {f"wave{n}.jpg": waves[n] for n in range(25, 30)}
    fourth |= {
        "twin2.jpg": waves[0],
        "held0.jpg": waves[30],
        "held1.jpg": waves[31],
        "held1copy.jpg": encoded(wave(31), "JPEG", 0.75, 60),
        "cut.jpg": waves[1][: len(waves[1]) // 2],
        "text.jpg": b"no picture at all",
        "empty.jpg": b"",
        "unread.avif": b"\0\0\0\x1cftypavif",
        "small.jpg": encoded(wave(40), "JPEG", 0.2),
        "blank.png": encoded(Image.new("RGB", (64, 64), "grey"), "PNG"),
        "long.png": encoded(chart(9).resize((640, 40)), "PNG"),
        "unsafe.jpg": encoded(wave(41)),
    }
    return {
        "00000.tar": _with_notes(first, {"wave08": 0.9}),
        "00001.tar": _with_notes(second, {}),
        "00002.tar.gz": _with_notes(third, {}),
        "00003.tar": fourth,
    }


def write_table(path: Path, names: list[str]) -> None:
    """Write img2dataset's table of a tar."""
    keys = [name.partition(".")[0] for name in names]
    columns = {
        "key": keys,
        "url": [f"https://example.org/{key}" for key in keys],
        "caption": ["a wave, or not"] * len(keys),
        "nsfw": [None if key == "unsafe" else 0.2 for key in keys],
    }
    pq.write_table(pa.table(columns), path)


def make_data(data: Path, shuffle: int | None = None) -> Path:
    """Write `crawl`, two seeds, `exam` and `pipelines.yaml`, in an order that `shuffle` decides."""
    steps = []
    for name, files in _tars().items():
        steps.append((write_tar, data / "crawl" / name, files))
        if name == "00003.tar":
            steps.append((write_table, data / "crawl" / "00003.parquet", list(files)))
    for folder, first, count in (("animals", 100, 8), ("plants", 120, 5)):
        for n in range(first, first + count):
            path = data / folder / f"kind{n % 3}" / f"{n}.jpg"
            steps.append((Path.write_bytes, path, encoded(wave(n))))
    for n in (30, 31):
        path = data / "exam" / f"{n}.png"
        steps.append((Path.write_bytes, path, encoded(wave(n), "PNG", 1.25)))
    if shuffle is not None:
        random.Random(shuffle).shuffle(steps)
    for write, path, content in steps:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)
    (data / "pipelines.yaml").write_text(CONFIG.replace("DATA", str(data)))
    return data
