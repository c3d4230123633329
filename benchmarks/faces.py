"""How many pasted faces the export hook finds: the 100 faces of 25 px, of Labeled Faces in the Wild, in skimage.

Each is enlarged to a side, and pasted with others into photographs without a face, at places that are
known. These are grey, blurred by the enlargement, frontal and cut off at chin and brow: a hard case
that no photograph shows. What is no face, 100 patches of backgrounds, is pasted likewise.

    .venv/bin/python benchmarks/faces.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import skimage.data
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.labelled import write_table
from curate.export.faces import find_faces

BACKGROUNDS = ("coffee", "chelsea", "rocket", "brick")
SIZE = (960, 720)
SIDES = (24, 48, 96, 192)
Box = tuple[int, int, int, int]


@click.command()
def main() -> None:
    """Print, for each side that faces are enlarged to, how many are found, and what else is."""
    patches = (skimage.data.lfw_subset() * 255).astype(np.uint8)
    rows = []
    for side in SIDES:
        told = [count_found(patches[part], side) for part in (slice(100), slice(100, 200))]
        (faces, others), (of_no_face, more) = told
        rows.append([side, f"{faces} of 100", f"{of_no_face} of 100", others + more])
    click.echo(write_table(("side, px", "faces found", "no faces found", "elsewhere"), rows))


def count_found(patches: np.ndarray, side: int) -> tuple[int, int]:
    """Return in how many pasted patches [n, 25, 25] a face is found, and how many are found elsewhere."""
    found = elsewhere = 0
    for picture, places in paste(patches, side):
        middles = [((a + c) / 2, (b + d) / 2) for a, b, c, d in find_faces(picture)]
        hit = [{place for place in places if is_inside(middle, place)} for middle in middles]
        found += len(set().union(*hit))
        elsewhere += sum(not places_hit for places_hit in hit)
    return found, elsewhere


def paste(patches: np.ndarray, side: int) -> Iterator[tuple[Image.Image, list[Box]]]:
    """Yield photographs with the patches, a few in each, and where these are."""
    columns, rows = (length // (2 * side) for length in SIZE)
    each = min(12, columns * rows)
    for number, at in enumerate(range(0, len(patches), each)):
        background = getattr(skimage.data, BACKGROUNDS[number % len(BACKGROUNDS)])()
        picture = Image.fromarray(background).convert("RGB").resize(SIZE)
        rng = np.random.default_rng(number)
        places = []
        for cell, patch in zip(
            rng.permutation(columns * rows), patches[at : at + each], strict=False
        ):
            left, top = (2 * side * int(x) + side // 2 for x in (cell % columns, cell // columns))
            large = Image.fromarray(patch).resize((side, side), Image.Resampling.BICUBIC)
            picture.paste(large.convert("RGB"), (left, top))
            places.append((left, top, left + side, top + side))
        yield picture, places


def is_inside(point: tuple[float, float], box: Box) -> bool:
    """Tell whether a point is in a box."""
    return box[0] <= point[0] < box[2] and box[1] <= point[1] < box[3]


if __name__ == "__main__":
    main()
