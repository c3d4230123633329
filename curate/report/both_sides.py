"""Draws the pairs just above and just below the thresholds that a calibration proposes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from curate.calibration.edits import edits_of
from curate.calibration.sides import Sides
from curate.catalogue.collection import Catalogued
from curate.catalogue.originals import Originals
from curate.report.contact_sheets import Sheet, Strip, Tile
from curate.report.sheet_png import sheet_png
from curate.report.stage import read_by_key
from curate.report.thumbnails import ReadImage, thumbnails
from shared.pictures.images import decode

ABSENT = "cannot be read any more"
SEED = "seed"
"""What the tiles call the one seed."""


def draw_sides(
    folder: Path,
    sides: Mapping[str, Mapping[str, Sides]],
    thresholds: Mapping[str, float],
    crawl: Catalogued,
    seed: Catalogued,
    edit_seed: int,
    max_pixels: int,
    scratch: Path,
) -> None:
    """Write `dedup.png` and `retrieve.png` to `folder`, of what `find_sides` found for each.

    `edit_seed` is what edited copies were drawn by, `max_pixels` the limit of their originals. The
    same pairs and images give the same bytes. Words stand in the place of an image that cannot
    be read any more.
    """
    with ExitStack() as stack:
        read_crawl, read_seed = (
            read_by_key(
                stack.enter_context(Originals(each.collection, each.parts, scratch)),
                each.collection,
            )
            for each in (crawl, seed)
        )
        drawn = {
            "dedup": (
                dedup_sheet(sides["dedup"], thresholds["dedup"]),
                with_edits(read_crawl, sides["dedup"]["edited"], edit_seed, max_pixels),
            ),
            "retrieve": (retrieve_sheet(sides["retrieve"], thresholds["retrieve"]), read_crawl),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, (sheet, read) in drawn.items():
            tiles = [tile for strip in sheet.strips for tile in strip.tiles]
            found = thumbnails(folder, tiles, read, {SEED: read_seed})
            (folder / f"{name}.png").write_bytes(sheet_png(sheet, found))


def dedup_sheet(sides: Mapping[str, Sides], threshold: float) -> Sheet:
    """Return pairs of crawled images, and of crawled images and their edited copies."""
    at = f"{threshold:.6g}"
    neighbours, edited = sides["neighbours"], sides["edited"]
    return Sheet(
        "dedup",
        f"On the two sides of the dedup threshold ({at})",
        "In pairs. If those above it are copies and those below are none, the threshold is right.",
        (
            _strip(f"{at} and above: an image (framed) and one near to it", neighbours["above"]),
            _strip(f"Below {at}: an image (framed) and one near to it", neighbours["below"]),
            _strip(f"{at} and above: an image (framed) and an edited copy", edited["above"]),
            _strip(f"Below {at}: an image (framed) and an edited copy, missed", edited["below"]),
        ),
        pairs=True,
    )


def retrieve_sheet(sides: Mapping[str, Sides], threshold: float) -> Sheet:
    """Return pairs of crawled images and the seed images that are nearest to them."""
    at = f"{threshold:.6g}"
    above, below = (sides["neighbours"][side] for side in ("above", "below"))
    return Sheet(
        "retrieve",
        f"On the two sides of the relevance threshold ({at})",
        "In pairs. If what is above it is wanted and what is below is not, the threshold is right.",
        (
            _strip(f"{at} and above: a seed image (framed) and a crawled one", above, seed=True),
            _strip(f"Below {at}: a seed image (framed) and a crawled one", below, seed=True),
        ),
        pairs=True,
    )


def with_edits(read: ReadImage, edited: Sides, seed: int, max_pixels: int) -> ReadImage:
    """Return a function that reads images, and edits them again where a tile's key names an edit."""
    known = {_edited_key(pair): pair for side in edited.values() for pair in side}

    def read_or_edit(key: str) -> bytes | None:
        if key not in known:
            return read(key)
        data = read(known[key]["key"])
        if data is None:
            return None
        picture = decode(data, max_pixels=max_pixels)
        copies = edits_of(picture, hashlib.sha256(data).hexdigest(), seed)
        stream = io.BytesIO()
        copies[known[key]["edit"]].save(stream, "PNG")
        return stream.getvalue()

    return read_or_edit


def _strip(heading: str, pairs: list[dict[str, Any]], *, seed: bool = False) -> Strip:
    tiles = []
    for pair in pairs:
        similarity = f"{pair['cosine']:.6g}"
        caption = f"cosine {similarity}"
        if "edit" in pair:
            first = Tile(pair["key"], "", mark="reference", absent=ABSENT)
            second = Tile(_edited_key(pair), f"{pair['edit']} · {similarity}", absent=ABSENT)
        elif seed:
            first = Tile(pair["other"], "seed", seed=SEED, mark="reference", absent=ABSENT)
            second = Tile(pair["key"], caption, absent=ABSENT)
        else:
            first = Tile(pair["key"], "", mark="reference", absent=ABSENT)
            second = Tile(pair["other"], caption, absent=ABSENT)
        tiles += [first, second]
    return Strip(heading if pairs else f"{heading}: none in the sample", tuple(tiles))


def _edited_key(pair: dict[str, Any]) -> str:
    return f"{pair['key']} · {pair['edit']}"
