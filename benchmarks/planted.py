"""Make a pool of photographs with planted copies, one edit each, and a seed: for benchmarks/truth.py.

The pool is Tiny-ImageNet's training shards 20 to 29, which no bundled model has seen, and copies of
some of their pictures as JPEG of quality 90, each in a place of its own. The seed is of other
pictures of some classes of animals, from the shards before, each with its label as `.cls`.

    .venv/bin/python benchmarks/planted.py DATA/tiny-imagenet POOL
    .venv/bin/lvd-curate run --pipeline sample --crawl POOL/crawl --seed POOL/seed --out OUT
    .venv/bin/python benchmarks/truth.py OUT POOL/truth.csv
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.edited_copies import EDITS
from benchmarks.proof.pool import HELD_OUT, IN_A_SHARD, jpeg, read_labelled, write_tar

LAST_ANIMAL = "n02600000"
"""WordNet's numbers of animals are below, in Tiny-ImageNet."""
TRUTH = ("member", "kind", "copy_of", "transform", "label", "shown")
"""Of `truth.csv`: `label` is the class, and `shown` whether the seed shows it, `yes` or empty."""


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--copies", default=1000, show_default=True)
@click.option("--classes", default=40, show_default=True, help="Of animals, that the seed shows.")
@click.option("--seeds", default=20, show_default=True, help="Pictures of each.")
@click.option("--limit", type=int, help="Take only so many pictures of each class for the pool.")
@click.option("--tail", type=int, help="Of the classes that the seed shows, take fewer and fewer, "
              "in a geometric series, to so many of the last.")  # fmt: skip
def main(data: Path, out: Path, **composition: int | None) -> None:
    """Write OUT/crawl, OUT/seed and OUT/truth.csv, from DATA, the folder of Tiny-ImageNet's tars."""
    images, copies, of_seed = write_pool(data, out, **composition)
    click.echo(f"{images:,} images, {copies:,} of them copies, and {of_seed} of the seed")


def write_pool(
    data: Path,
    out: Path,
    copies: int,
    classes: int,
    seeds: int,
    limit: int | None = None,
    tail: int | None = None,
) -> tuple[int, int, int]:
    """Write what `main` says; return how many images there are, copies among them, and of the seed."""
    names = [line.split("\t")[0] for line in (data / "classes.txt").read_text().splitlines()]
    animals = [label for label, name in enumerate(names) if name < LAST_ANIMAL]
    tars = sorted(data.glob("train-*.tar"))
    rng = np.random.default_rng(0)

    pictures = read_labelled([tars[number] for number in HELD_OUT])
    pool = [(label, data) for label in sorted(pictures) for data in pictures[label][:limit]]
    originals = rng.choice(len(pool), copies, replace=False).tolist()
    edits = [list(EDITS)[n % len(EDITS)] for n in range(copies)]
    rows = [(label, data, None, "") for label, data in pool]
    for original, edit in zip(originals, edits, strict=True):
        label, data = pool[original]
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        rows.append((label, jpeg(EDITS[edit](picture, rng), 90), original, edit))

    order = rng.permutation(len(rows)).tolist()
    shown = sorted(rng.choice(animals, classes, replace=False).tolist())
    if tail is not None:
        rare = _beyond_tail([label for label, _ in pool], shown, tail)
        order = [row for row in order if rows[row][2] not in rare and row not in rare]
    place = {row: n for n, row in enumerate(order)}
    (out / "crawl").mkdir(parents=True)
    for start in range(0, len(order), IN_A_SHARD):
        members = (
            (f"{n:06d}.jpg", rows[order[n]][1])
            for n in range(start, start + IN_A_SHARD)
            if n < len(order)
        )
        write_tar(out / "crawl" / f"{start // IN_A_SHARD:05d}.tar", members)
    with (out / "truth.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(TRUTH)
        for n, row in enumerate(order):
            label, _, original, edit = rows[row]
            of = "" if original is None else f"{place[original]:06d}"
            kind = "animal" if label in animals else "object"
            is_shown = "yes" if label in shown else ""
            table.writerow((f"{n:06d}", kind, of, edit, label, is_shown))

    others = read_labelled(tars[: HELD_OUT.start])
    (out / "seed").mkdir()
    chosen = [(label, data) for label in shown for data in others[label][:seeds]]
    members = (
        (f"{n:06d}.{end}", content)
        for n, (label, data) in enumerate(chosen)
        for end, content in (("jpg", data), ("cls", str(label).encode()))
    )
    write_tar(out / "seed" / "00000.tar", members)
    return len(order), sum(rows[row][2] is not None for row in order), len(chosen)


def _beyond_tail(labels: Sequence[int], shown: Sequence[int], tail: int) -> set[int]:
    """Return which pictures are too many, where `shown` are to have a long tail of `tail` at last."""
    most = max(labels.count(label) for label in shown)
    sizes = np.geomspace(most, tail, len(shown)).round().astype(int).tolist()
    rows = {label: [n for n, own in enumerate(labels) if own == label] for label in shown}
    return {n for label, size in zip(shown, sizes, strict=True) for n in rows[label][size:]}


if __name__ == "__main__":
    main()
