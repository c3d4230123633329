"""A crawl of drawn JPEGs all of which are kept, as the stages before export leave it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curate.catalogue.collection import Collection
from curate.catalogue.originals import save_parts
from curate.export.bounds import ShardBounds
from curate.export.kept_facts import FILE, KEPT, gather_facts
from curate.export.shards import ExportSettings, Kept, export_shard
from curate.export.spill import Source
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.shard_folder.tar_writer import TarWriter

PART, SHARD = 500, 1000
"""Images of one."""
SIDE = 384
"""Pixels; so drawn, an image has some 55 kB."""
MAX_PIXELS = 178_956_970


def draw_crawl(crawl: Path, images: int, side: int = SIDE) -> None:
    """Write tars of drawn JPEGs, `PART` in each."""
    for start in range(0, images, PART):
        with (crawl / f"{start:06d}.tar").open("wb") as file:
            tar = TarWriter(file)
            for number in range(start, min(start + PART, images)):
                tar.add(f"{number:06d}.jpg", _draw(number, side))
            tar.close()


def keep_all(crawl: Path, work: Path) -> Kept:
    """Lay down what the stages before export would, had they kept every image of a crawl."""
    parts = list_parts("crawl", DatasetSettings(path=str(crawl)))
    rows = [row for part in parts for row in _facts(part.name, Path(part.root, part.paths[0]))]
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    for position, number in enumerate(order):
        rows[number] |= {"position": position, "number": number}
    home, laid = work / "collection", work / "facts"
    for made in (home, laid, work / "sorted"):
        made.mkdir(parents=True)
    sizes = [sum(row["part"] == part.name for row in rows) for part in parts]
    np.save(home / "starts.npy", np.cumsum([0, *sizes]))
    np.save(work / "edges.npy", [*range(0, len(rows), SHARD), len(rows)])
    table = pa.Table.from_pylist([rows[number] for number in order], schema=KEPT)
    with pa.ipc.new_file(str(work / "sorted" / FILE), KEPT) as writer:
        writer.write_table(table)
    gather_facts([work / "sorted"], 0, len(rows), out=laid)
    listed = save_parts(parts, work / "parts.json")
    source = Source(Collection(home), listed, work / "position.npy", 0, {})
    bounds = ShardBounds(work / "edges.npy")
    return Kept((source,), bounds, (laid,), len(bounds), MAX_PIXELS)


def export(kept: Kept, out: Path) -> None:
    """Write the shards."""
    for shard in range(len(kept.bounds)):
        export_shard(kept, shard, ExportSettings(shard_size=SHARD), out=out)


def _facts(part: str, path: Path) -> Iterator[dict[str, Any]]:
    with tarfile.open(path) as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None  # all are files
            data = stream.read()
            width, height = Image.open(io.BytesIO(data)).size
            yield {
                "source": 0,
                "key": f"{part}/{member.name.removesuffix('.jpg')}",
                "part": part,
                "member": member.name,
                "url": f"https://example.org/{part}/{member.name}",
                "sha256": hashlib.sha256(data).hexdigest(),
                "width": width,
                "height": height,
                "format": "jpeg",
                "bytes": len(data),
                "offset": member.offset_data,
                "nearest_seed": f"seed/{member.name}",
                "seed_similarity": 0.7,
            }


def _draw(number: int, side: int) -> bytes:
    random = np.random.default_rng(number)
    noise = random.normal(random.uniform(40, 215, 3), 40, (side // 4, side // 4, 3))
    data = io.BytesIO()
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize((side, side))
    image.save(data, "JPEG", quality=90)
    return data.getvalue()
