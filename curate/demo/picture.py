"""The demo's picture: copies and their originals, other dropped images, features of kept ones."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from curate.demo.summary import REASONS
from curate.demo.truth import read_truth
from curate.report.tables import open_tables, read_funnel, rows, threshold
from curate.sample.photographs import SEED_SUBJECTS
from shared.errors import LvdError
from shared.pages.sheets import Strip, Tile, draw_sheet
from shared.pictures.images import ImageError, decode
from shared.storage.files import written_whole

COLUMNS = 6
PAIRS = COLUMNS // 2
"""Copies with their originals."""
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
    strips = [_copies(curation, sample), _others(curation, sample, threshold(funnel, "retrieve"))]
    top = draw_sheet(title, [s for s in strips if s.tiles], side=SIDE, columns=COLUMNS)
    with Image.open(below) as lower:
        canvas = Image.new("RGB", (max(top.width, lower.width), top.height + lower.height), "white")
        canvas.paste(top, (0, 0))
        canvas.paste(lower, (0, top.height))
    stream = io.BytesIO()
    canvas.save(stream, "PNG", optimize=True)
    with written_whole(picture) as beside:
        beside.write_bytes(stream.getvalue())


def _copies(curation: Path, sample: Path) -> Strip:
    """Return some pictures that were called copies, each beside the one that it is called a copy of.

    One that is called so wrongly, if there is any, stands last.
    """
    truth = read_truth(sample)
    found = rows(
        open_tables(curation),
        """
        SELECT dropped.key, dropped.part, dropped.member, dropped.duplicate_similarity AS cosine,
            origin.key AS of_key, origin.part AS of_part, origin.member AS of_member,
            origin.caption, origin.decision
        FROM images AS dropped JOIN images AS origin ON origin.key = dropped.duplicate_of
        WHERE dropped.decision = 'duplicate' AND dropped.duplicate_similarity < 1
        ORDER BY origin.decision = 'kept' AND list_contains(?, origin.caption) DESC,
            cosine, dropped.key
        """,
        [list(SEED_SUBJECTS)],
    )
    right: dict[str, dict[str, Any]] = {}  # the least alike pair of each subject
    wrong: list[dict[str, Any]] = []
    for row in found:
        if truth is None or truth.is_copy(row["key"], row["of_key"]):
            right.setdefault(row["caption"], row)
        else:
            wrong.append(row)
    pairs = [*list(right.values())[: PAIRS - len(wrong[:1])], *wrong[:1]]
    originals = [{"part": row["of_part"], "member": row["of_member"]} for row in pairs]
    files = zip(_members(sample, originals), _members(sample, pairs), strict=True)
    tiles: list[Tile] = []
    for row, (original, copy) in zip(pairs, files, strict=True):
        fate = "kept" if row["decision"] == "kept" else f"dropped: {REASONS[row['decision']]}"
        verdict = "" if truth is None else ", wrongly" if row in wrong else ", rightly"
        tiles += [
            Tile(_square(original), row["caption"], fate, mark=True),
            Tile(_square(copy), f"called a copy of it{verdict}", f"cosine {row['cosine']:.2f}"),
        ]
    return Strip("Called copies, each beside the picture that it is called a copy of", tiles)


def _others(curation: Path, sample: Path, asked: float | None) -> Strip:
    """Return pictures dropped for other reasons, those that show them best first.

    `asked` is the threshold of relevance, if there was one.
    """
    tables = open_tables(curation)
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
    unlike = unlike[: COLUMNS - len(useless)]
    wanted = f", {asked:.2f} was asked for" if asked is not None else ""
    captions = [("unlike the seed", f"cosine {row['cosine']:.2f}{wanted}") for row in unlike]
    captions += [("useless", row["reason"]) for row in useless]
    files = _members(sample, [*unlike, *useless])
    tiles = [Tile(_square(data), *texts) for data, texts in zip(files, captions, strict=True)]
    return Strip("Dropped for other reasons, for example", tiles)


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
