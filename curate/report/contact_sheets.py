"""What a contact sheet is: tiles under headings; and how the rows of the tables become tiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from curate.written_cosine import rounded_down

COLUMNS = 8  # tiles in a line of a PNG


@dataclass(frozen=True)
class Tile:
    """One image on a sheet."""

    key: str
    caption: str
    detail: str = ""  # what else is known, shown where it is enlarged
    shard: str | None = None  # of a kept image
    shard_key: str | None = None
    seed: str | None = None  # the seed of which `key` names an image; None: a crawled one
    mark: str = ""  # "reference": the tiles after it are compared with it
    hidden: bool = False  # it must not be drawn
    absent: str = "no picture"  # text in place of a picture
    reason: str = ""  # whole, under the picture
    content: str = ""  # the sha256 of a crawled image


@dataclass(frozen=True)
class Strip:
    """A heading and the tiles under it."""

    heading: str
    tiles: tuple[Tile, ...]
    note: str = ""
    band: tuple[float, float] | None = None
    """The similarities that its tiles have, the upper one excluded."""


@dataclass(frozen=True)
class Sheet:
    """A contact sheet: `name` is that of its file, `note` tells how its images were chosen."""

    name: str
    title: str
    note: str
    strips: tuple[Strip, ...]
    pairs: bool = False  # each two tiles belong together
    flow: bool = False  # short strips stand side by side


def tiles_of(sheets: Iterable[Sheet]) -> Iterator[Tile]:
    """Yield the tiles of sheets, in reading order."""
    for sheet in sheets:
        for strip in sheet.strips:
            yield from strip.tiles


def judged_tiles(row: dict[str, Any]) -> list[Tile]:
    """Return an image that was compared with seeds, and its nearest seed image.

    `row` is one of `images`, with the name `seed` of the nearest seed's dataset.
    """
    similarity, seed = row["seed_similarity"], row["nearest_seed"]
    own = Tile(
        row["key"],
        rounded_down(similarity),
        _detail(row, f"cosine {rounded_down(similarity)} with seed {seed}"),
        row["output_shard"],
        row["output_key"],
        content=_content(row),
        reason="" if f"nearest seed {seed} is below" in row["reason"] else row["reason"],
    )
    return [own, seed_tile(seed, row["seed"])]


def near_tile(row: dict[str, Any]) -> Tile:
    """Return an image with its `similarity` to a seed image and what became of it."""
    became = "" if row["decision"] == "kept" else f" · {row['decision']}"
    return Tile(
        row["key"],
        f"{rounded_down(row['similarity'])}{became}",
        _detail(row, row["reason"]),
        row["output_shard"],
        row["output_key"],
        content=_content(row),
    )


def seed_tile(key: str, seed: str | None) -> Tile:
    """Return an image of a seed, framed."""
    return Tile(key, "seed", seed=seed or "", mark="reference")


def copy_tile(row: dict[str, Any], *, framed: bool = False, fact: str = "") -> Tile:
    """Return an image that is, or has, a copy, with `fact` above it; `row` is one of `images`."""
    return Tile(
        row["key"],
        f"{fact} · {_size(row)}" if fact else _size(row),
        _detail(row, fact or "stands for its group"),
        row["output_shard"],
        row["output_key"],
        mark="reference" if framed else "",
        content=_content(row),
        **_hidden_if_unsafe(row),
    )


def member_tile(row: dict[str, Any]) -> Tile:
    """Return a member of a group; `row` joins `images` and `duplicates`."""
    if row["representative"]:
        return copy_tile(row, framed=True)
    method, similarity = row["method"], rounded_down(row["similarity"])
    known = {"exact": "exact", "near": similarity}  # a cosine by itself: near by that vector
    return copy_tile(row, fact=known.get(method, f"{similarity} {method}"))


def rejected_tile(row: dict[str, Any]) -> Tile:
    """Return an image that was decided about before any comparison."""
    detail = _detail(row, row["reason"])
    if row["decision"] == "corrupt":
        size = f"{_size(row)} {row['format'] or ''}".strip() if row["width"] else ""
        caption = size or f"{row['bytes']:,} bytes"
        return Tile(
            row["key"], caption, detail, hidden=True, absent="no picture", reason=row["reason"]
        )
    return Tile(
        row["key"],
        _size(row),
        detail,
        reason=row["reason"],
        content=_content(row),
        **_hidden_if_unsafe(row),
    )


def _content(row: dict[str, Any]) -> str:
    return row.get("sha256") or ""


def _hidden_if_unsafe(row: dict[str, Any]) -> dict[str, Any]:
    unsafe = row["decision"] == "unsafe"
    return {"hidden": True, "absent": "unsafe: not shown"} if unsafe else {}


def _detail(row: dict[str, Any], fact: str) -> str:
    facts = [f"{_size(row)} {row['format'] or ''}".strip(), row["decision"], fact]
    return " · ".join(filter(None, facts))


def _size(row: dict[str, Any]) -> str:
    return f"{row['width']}×{row['height']}" if row["width"] else "no size"
