import io
import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from written_reports import write_reports

from curate.demo import picture
from curate.demo.picture import SIDE, choose_pictures, draw_picture
from shared.errors import LvdError
from shared.pages.sheets import CAPTIONS, HEADING

COLOURS = {"cat": "red", "flower": "lime", "chart": "blue", "coins": "yellow", "brick": "purple"}
ROWS = [  # caption, decision, width, reason, duplicate_of, cosines with it and with the seed
    ("cat", "kept", 40, "", None, None, 0.9),
    ("cat", "kept", 60, "", None, None, 0.8),
    ("flower", "kept", 50, "", None, None, 0.8),
    ("coins", "kept", 90, "", None, None, 0.7),
    ("mirror", "duplicate", 60, "copy", 1, 0.95, None),
    ("mirror", "duplicate", 60, "copy", 1, 1.0, None),
    ("chart", "irrelevant", 80, "far", None, None, 0.1),
    ("blank", "low_quality", 30, "blank: contrast 0.0", None, None, None),
    ("brick", "duplicate", 60, "copy", 2, 0.9, None),
    ("mirror", "duplicate", 60, "copy", 1, 0.97, None),
]
COPY_OF = {4: 1, 5: 1, 9: 1}
"""What was planted: not the brick, which was called a copy of the flower."""


ROW_HEIGHT = HEADING + SIDE + 2 + CAPTIONS
"""From a tile to the one above it, in pixels."""


def colours(drawn, middle, count):
    """Return the colours (count, 3) of tiles in a line whose middle is `middle` pixels from the top."""
    return np.array([drawn.getpixel((110 + 192 * column, middle)) for column in range(count)])


def jpeg(colour, width):
    stream = io.BytesIO()
    Image.new("RGB", (width, 20), colour).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def curated(tmp_path):
    """The reports of a made curation, and the sample that it is of."""
    curation, sample = tmp_path / "curation", tmp_path / "sample"
    (curation / "reports").mkdir(parents=True)
    (sample / "crawl").mkdir(parents=True)
    rows = []
    with tarfile.open(sample / "crawl" / "00000.tar", "w") as archive:
        for number, (caption, decision, width, reason, origin, cosine, seeds) in enumerate(ROWS):
            member = tarfile.TarInfo(f"i{number}.jpg")
            data = jpeg(COLOURS.get(caption, "white"), width)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            rows.append(
                {
                    "key": f"00000/i{number}",
                    "part": "00000",
                    "member": member.name,
                    "caption": caption,
                    "width": width,
                    "height": 20,
                    "decision": decision,
                    "reason": reason,
                    "duplicate_of": None if origin is None else f"00000/i{origin}",
                    "duplicate_similarity": cosine,
                    "seed_similarity": seeds,
                }
            )
    write_reports(curation, rows)
    lines = [
        f"00000,i{number},{row[0]},{f'i{COPY_OF[number]}' if number in COPY_OF else ''}"
        for number, row in enumerate(ROWS)
    ]
    (sample / "truth.csv").write_text("\n".join(["part,member,kind,copy_of", *lines, ""]))
    funnel = {
        "images": len(ROWS),
        "decisions": {"kept": 4},
        "thresholds": {"retrieve": {"value": 0.5, "source": "embedder"}},
    }
    (curation / "reports" / "funnel.json").write_text(json.dumps(funnel))
    return curation, sample


def test_the_largest_kept_picture_of_each_subject_of_the_seed_is_chosen(curated, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "of an earlier curation.jpg").touch()
    choose_pictures(*curated, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "cat.jpg": jpeg("red", 60),
        "flower.jpg": jpeg("lime", 50),
    }


def test_what_was_dropped_stands_above_what_the_model_sees(curated, tmp_path):
    below, above = tmp_path / "below.png", tmp_path / "picture.png"
    Image.new("RGB", (1182, 50), "purple").save(below)
    for _ in range(2):
        draw_picture(*curated, below, above)
    drawn = Image.open(above).convert("RGB")
    assert drawn.width == 1182
    assert drawn.getpixel((590, drawn.height - 25)) == (128, 0, 128)
    # Tiles 192 pixels apart, below: the chart, the blank one; above them each copy behind its
    # original: one right (it is white, as made here), one wrong.
    middle = drawn.height - 50 - 130
    seen = colours(drawn, middle, 3)
    assert np.abs(seen - [[0, 0, 255], [255] * 3, [255] * 3]).max() < 8
    seen = colours(drawn, middle - ROW_HEIGHT, 5)
    red, green, purple, white = [255, 0, 0], [0, 255, 0], [128, 0, 128], [255] * 3
    assert np.abs(seen - [red, white, green, purple, white]).max() < 8


@pytest.mark.parametrize("known", [True, False])
def test_a_copy_stands_behind_its_original_with_what_is_true_of_it(curated, monkeypatch, known):
    curation, sample = curated
    if not known:
        (sample / "truth.csv").unlink()
    strips = []
    monkeypatch.setattr(
        picture, "draw_sheet", lambda title, of, **_: strips.extend(of) or Image.new("RGB", (9, 9))
    )
    Image.new("RGB", (9, 9)).save(sample / "below.png")
    picture.draw_picture(curation, sample, sample / "below.png", sample / "picture.png")
    texts = [(tile.caption, tile.detail, tile.mark) for tile in strips[0].tiles]
    right, wrong = (", rightly", ", wrongly") if known else ("", "")
    cat = [("cat", "kept", True), (f"called a copy of it{right}", "cosine 0.95", False)]
    brick = [("flower", "kept", True), (f"called a copy of it{wrong}", "cosine 0.90", False)]
    assert texts == (cat + brick if known else brick + cat)


def test_without_near_copies_there_is_no_heading_for_them(curated, tmp_path):
    curation, sample = curated
    table = pq.read_table(curation / "reports" / "images.parquet").to_pylist()
    kept = [row for row in table if row["decision"] != "duplicate"]
    write_reports(curation, kept)
    below, drawn = tmp_path / "below.png", tmp_path / "picture.png"
    Image.new("RGB", (1182, 50), "purple").save(below)
    picture.draw_picture(curation, sample, below, drawn)
    with Image.open(drawn) as without:
        assert without.height < 2 * ROW_HEIGHT


def test_a_sample_that_is_another_one_is_named(curated, tmp_path):
    curation, sample = curated
    (sample / "crawl" / "00000.tar").unlink()
    with pytest.raises(LvdError, match=r"sample at .* remove it"):
        choose_pictures(curation, sample, tmp_path / "pictures")
