"""The demo's picture: dropped images with the reasons, above features of kept images."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from curate.report.tables import open_tables, read_funnel, rows, threshold
from curate.sample.photographs import SEED_SUBJECTS
from shared.errors import LvdError
from shared.images import ImageError, decode
from shared.sheets import Strip, Tile, draw_sheet
from shared.storage import written_whole

COLUMNS = 6
COPIES = 2
"""Tiles of copies; the others are unlike the seed, but for one useless image, if there is any."""
SIDE = 180  # pixels, as on the sheet of `lvd-train visualise` below it


def choose_pictures(curation: Path, sample: Path, folder: Path) -> None:
    """Write the largest kept picture of each of the seed's subjects to `folder`, named by subject.

    `sample` is where the built-in sample was made. Where none of those was kept, it is the largest
    pictures of whatever was.
    """
    found = rows(
        open_tables(curation),
        """
        SELECT caption, part, member FROM images WHERE decision = 'kept'
        QUALIFY row_number() OVER (PARTITION BY caption ORDER BY width * height DESC, key) = 1
        ORDER BY list_contains(?, caption) DESC, width * height DESC, caption LIMIT ?
        """,
        [list(SEED_SUBJECTS), COLUMNS],
    )
    wanted = [row for row in found if row["caption"] in SEED_SUBJECTS] or found
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for row, data in zip(wanted, _members(sample, wanted), strict=True):
        (folder / f"{row['caption']}{Path(row['member']).suffix}").write_bytes(data)


def draw_picture(curation: Path, sample: Path, below: Path, picture: Path) -> None:
    """Write the PNG `picture`: examples of what was dropped, above the PNG `below`."""
    funnel = read_funnel(curation)
    title = f"{funnel['decisions']['kept']:,} of {funnel['images']:,} pictures were kept"
    strip = Strip("Dropped, for example", _dropped(curation, sample, funnel))
    top = draw_sheet(title, [strip], side=SIDE, columns=COLUMNS)
    with Image.open(below) as lower:
        canvas = Image.new("RGB", (max(top.width, lower.width), top.height + lower.height), "white")
        canvas.paste(top, (0, 0))
        canvas.paste(lower, (0, top.height))
    stream = io.BytesIO()
    canvas.save(stream, "PNG", optimize=True)
    with written_whole(picture) as beside:
        beside.write_bytes(stream.getvalue())


def _dropped(curation: Path, sample: Path, funnel: dict[str, Any]) -> list[Tile]:
    """Return some pictures of each reason, those that show it best first."""
    tables = open_tables(curation)
    asked = threshold(funnel, "retrieve")
    copies = rows(
        tables,
        """
        SELECT dropped.part, dropped.member, dropped.duplicate_similarity AS cosine, kept.caption
        FROM images AS dropped JOIN images AS kept ON kept.key = dropped.duplicate_of
        WHERE dropped.decision = 'duplicate' AND dropped.duplicate_similarity < 1
        QUALIFY row_number() OVER (PARTITION BY kept.caption ORDER BY cosine, dropped.key) = 1
        ORDER BY kept.decision = 'kept' AND list_contains(?, kept.caption) DESC,
            kept.width * kept.height DESC, dropped.key LIMIT ?
        """,
        [list(SEED_SUBJECTS), COPIES],
    )
    unlike = rows(
        tables,
        """
        SELECT part, member, seed_similarity AS cosine,
            count(*) OVER (PARTITION BY caption) AS images
        FROM images WHERE decision = 'irrelevant'
        QUALIFY row_number() OVER (PARTITION BY caption ORDER BY width * height DESC, key) = 1
        ORDER BY images DESC, key LIMIT ?
        """,
        [COLUMNS],
    )
    useless = rows(
        tables,
        """
        SELECT part, member, reason FROM images WHERE decision = 'low_quality'
        ORDER BY width * height DESC, key LIMIT 1
        """,
    )
    captions = [("a copy", f"of {row['caption']}, cosine {row['cosine']:.2f}") for row in copies]
    unlike = unlike[: COLUMNS - len(copies) - len(useless)]
    wanted = f", {asked:.2f} was asked for" if asked is not None else ""
    captions += [("unlike the seed", f"cosine {row['cosine']:.2f}{wanted}") for row in unlike]
    captions += [("useless", row["reason"]) for row in useless]
    files = _members(sample, [*copies, *unlike, *useless])
    return [Tile(_square(data), *texts) for data, texts in zip(files, captions, strict=True)]


def _square(data: bytes) -> Image.Image | None:
    """Return the picture's central square, `SIDE` pixels wide; None where it cannot be read."""
    try:
        return ImageOps.fit(decode(data), (SIDE, SIDE))
    except ImageError:
        return None


def _members(sample: Path, wanted: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Return the bytes of members of the sample's parts."""
    found = []
    for row in wanted:
        path = sample / "crawl" / f"{row['part']}.tar"
        try:
            with tarfile.open(path, "r:") as archive:
                stream = archive.extractfile(row["member"])
                if stream is None:
                    raise KeyError(f"{row['member']} is no file")
                found.append(stream.read())
        except (OSError, KeyError, tarfile.TarError) as error:
            raise LvdError(
                f"the sample at {sample} is not the one that was curated ({error}): remove it, and "
                "run the same command again"
            ) from error
    return found
