"""What a pass by hashes before embedding would save: the share of copies, and the seconds of each step.

Embedding in one pass decodes a picture once. A pass by hashes before it decodes every picture to hash it,
and those that stand for a hash once more: it saves time only where the share of copies is above that of
decoding. Seconds are of the processor, of one thread, and of the fastest of several rounds.

    .venv/bin/python benchmarks/hash_first.py --images DATA/crawl-small/crawl --limit 6000
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.filters import Work, measure, read_images
from benchmarks.labelled import write_table
from curate.dedup.hashes import METHODS, principal_directions
from curate.embedding.embed import preparation
from curate.filters import grey
from curate.filters.looks import LOOKS
from shared.embedders.embedder import load_forward, resolve_device
from shared.embedders.settings import EmbedderSettings, bundled_settings
from shared.pictures.images import decode

BUNDLED = ("bundled-copies", "bundled")
UNTRAINED = EmbedderSettings(
    kind="timm", model="vit_small_patch14_dinov2", pretrained=False, image_size=224
)
"""The network of `dinov2-s`; what it has learned does not matter to its speed."""


@click.command()
@click.option("--images", "path", help="A dataset; by default the built-in sample's crawl.")
@click.option("--limit", default=6_000, show_default=True, help="Images, at most.")
@click.option("--timed", default=100, show_default=True, help="Of these, by which steps are timed.")
@click.option("--rounds", default=3, show_default=True)
def main(path: str | None, limit: int, timed: int, rounds: int) -> None:
    """Print the shares of copies, and what a pass before embedding would save."""
    with tempfile.TemporaryDirectory() as scratch:
        found = read_images(path, limit, Path(scratch))
    data = list({hashlib.sha256(each).digest(): each for each in found}.values())
    click.echo(f"{len(found)} images that can be decoded, {len(data)} of other bytes\n")
    shares = {name: count_copies(name, data) / len(data) for name in METHODS}
    some = data[:: max(1, len(data) // timed)][:timed]
    bundled = [resolve_device(bundled_settings(name)) for name in BUNDLED]
    rows = []
    for name, embedders in (
        ("bundled", bundled),
        ("dinov2-s", [bundled[0], resolve_device(UNTRAINED)]),
    ):
        decoding, forward = time_embedding(embedders, some, rounds)
        for method, share in shares.items():
            look = LOOKS[METHODS[method].look]
            first, hashing = (
                each / len(some)
                for each in measure(Work("", look.side, look.take), some, rounds)[:2]
            )
            once = decoding + hashing + forward
            twice = first + hashing + (1 - share) * (decoding + forward)
            rows.append(
                [
                    *(f"`{BUNDLED[0]}` and `{name}`", f"`{method}`", f"{share:.3f}"),
                    *(f"{1000 * each:.2f}" for each in (decoding, hashing, forward)),
                    *(f"{first / (decoding + forward):.3f}", f"{1 - twice / once:+.3f}"),
                ]
            )
    header = (
        "embedders",
        "hash",
        "copies",
        "decode",
        "hash, ms",
        "forward, ms",
        "pays above",
        "saved",
    )
    click.echo(write_table(header, rows))


def count_copies(name: str, data: Sequence[bytes]) -> int:
    """Return how many pictures have a hash that another one has, which would stand for them."""
    look = LOOKS[METHODS[name].look]
    taken = [look.take(decode(one, reduce_to=look.side))[look.name] for one in data]
    kept = [each for each in taken if each is not None]
    if name == "pca":
        pictures = np.frombuffer(b"".join(kept), np.uint8).reshape(-1, grey.SIDE**2)
        directions, middle = principal_directions(pictures)
        if not directions.size:
            return 0
        kept = [bits.tobytes() for bits in np.packbits(pictures @ directions > middle, axis=1)]
    return len(kept) - len(set(kept))


def time_embedding(
    embedders: Sequence[EmbedderSettings], data: Sequence[bytes], rounds: int
) -> tuple[float, float]:
    """Return the seconds that an image takes to be decoded, at each scale once, and to be embedded."""
    decoding, forward = 0.0, 0.0
    for side in {preparation(each).reduce_to for each in embedders}:
        mine = [each for each in embedders if preparation(each).reduce_to == side]
        for place, each in enumerate(mine):
            network, size = load_forward(each, 1), each.batch_size

            def judge(seen: Sequence, network=network, size=size) -> None:
                for at in range(0, len(seen), size):
                    network.embed(seen[at : at + size])

            work = Work("", side, preparation(each).prepare, judge)
            first, second, _ = measure(work, data, rounds)
            decoding += 0 if place else first / len(data)
            forward += second / len(data)
    return decoding, forward


if __name__ == "__main__":
    main()
