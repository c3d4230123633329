import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate.demo.picture import choose_pictures, draw_picture
from shared.errors import LvdError

COLOURS = {"cat": "red", "flower": "lime", "chart": "blue", "coins": "yellow"}
ROWS = [  # caption, decision, width, reason, duplicate_of, cosines with it and with the seed
    ("cat", "kept", 40, "", None, None, 0.9),
    ("cat", "kept", 60, "", None, None, 0.8),
    ("flower", "kept", 50, "", None, None, 0.8),
    ("coins", "kept", 90, "", None, None, 0.7),
    ("mirror", "duplicate", 60, "copy", 1, 0.95, None),
    ("mirror", "duplicate", 60, "copy", 1, 1.0, None),
    ("chart", "irrelevant", 80, "far", None, None, 0.1),
    ("blank", "low_quality", 30, "blank: contrast 0.0", None, None, None),
]


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
    table = pa.Table.from_pylist(rows)
    for name in ("images", "retrieval", "duplicates"):
        pq.write_table(table, curation / "reports" / f"{name}.parquet")
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
    below, picture = tmp_path / "below.png", tmp_path / "picture.png"
    Image.new("RGB", (1182, 50), "purple").save(below)
    for _ in range(2):
        draw_picture(*curated, below, picture)
    drawn = Image.open(picture).convert("RGB")
    assert drawn.width == 1182
    assert drawn.getpixel((590, drawn.height - 25)) == (128, 0, 128)
    # Tiles 192 pixels apart: the copy (white, as made here), the chart, the blank one.
    middle = drawn.height - 50 - 130
    seen = np.array([drawn.getpixel((110 + 192 * column, middle)) for column in range(4)])
    assert np.abs(seen - [[255] * 3, [0, 0, 255], [255] * 3, [255] * 3]).max() < 8


def test_a_sample_that_is_another_one_is_named(curated, tmp_path):
    curation, sample = curated
    (sample / "crawl" / "00000.tar").unlink()
    with pytest.raises(LvdError, match=r"sample at .* remove it"):
        choose_pictures(curation, sample, tmp_path / "pictures")
