"""Embedding a part: a row for every image, a vector for every usable one, whatever is in it."""

import json
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import ColourEmbedder, encoded, picture, write_tar
from PIL import Image

from curate.embedding.embed import (
    FACTS,
    VECTORS,
    EmbedSettings,
    embed_fingerprint,
    embed_part,
    unit_name,
)
from curate.filters.judge import CODE, QualitySettings, judge
from shared.datasets import DatasetSettings, list_parts
from shared.embedders import EmbedderSettings


def embedded(path, folder, *, batch_size=4, columns=(), threads=2, settings=None):
    """Return what the stage says, its facts and its vectors, of a dataset of one part."""
    [part] = list_parts("crawl", DatasetSettings(path=str(path)))
    folder.mkdir(parents=True)
    configured = EmbedderSettings(kind="descriptor", batch_size=batch_size)
    settings = settings or EmbedSettings()
    args = (ColourEmbedder(), part, settings, configured, list(columns), threads)
    said = embed_part(*args, out=folder)
    return said, pq.read_table(folder / FACTS), np.load(folder / VECTORS)


def alone(data):
    """Return the vector that an image has with no other in its batch."""
    embedder = ColourEmbedder()
    image = Image.open(data) if isinstance(data, str) else data
    return embedder.embed([embedder.prepare(image)])[0].astype(np.float16)


def png_of_size(width, height):
    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


GOOD = {f"{number:02d}.png": encoded(picture(number), "PNG") for number in range(10)}
BROKEN = {
    "00a.jpg": encoded(picture(90))[:-300],
    "01a.jpg": b"",
    "02a.png": b"<!doctype html><title>404</title>",
    "03a.png": encoded(picture(91), "PNG")[:40],
    "04a.avif": b"\0\0\0\x1cftypavif",
    "05a.png": png_of_size(60_000, 60_000),
    "06a.png": png_of_size(2**32 - 1, 2**32 - 1),
    "07a.jpg": b"\xff\xd8\xff" + bytes(500),
}


def test_broken_images_cost_no_other_image_its_vector(tmp_path):
    path = write_tar(tmp_path / "in" / "p.tar", dict(sorted((GOOD | BROKEN).items())))
    said, facts, vectors = embedded(path, tmp_path / "out")
    assert facts["key"].to_pylist() == sorted(f"p/{n.split('.')[0]}" for n in GOOD | BROKEN)
    assert {k: said[k] for k in ("images", "vectors", "corrupt")} == {
        "images": 18,
        "vectors": 10,
        "corrupt": 8,
    }
    problems = dict(zip(facts["member"].to_pylist(), facts["problem"].to_pylist(), strict=True))
    assert {name for name, problem in problems.items() if problem} == set(BROKEN)
    assert not any("\n" in problem for problem in problems.values())
    rows = dict(zip(facts["member"].to_pylist(), facts["vector"].to_pylist(), strict=True))
    for number, name in enumerate(GOOD):
        np.testing.assert_array_equal(vectors[rows[name]], alone(picture(number)))
    assert [row for row in facts["vector"].to_pylist() if row >= 0] == list(range(10))
    assert {rows[name] for name in BROKEN} == {-1}


def test_vectors_that_are_not_finite_or_zero_are_low_quality(tmp_path):
    flat = {"a": (0, 0, 0), "c": (0, 0, 255), "e": (255, 0, 0)}
    odd = {f"{name}.png": Image.new("RGB", (48, 40), colour) for name, colour in flat.items()}
    good = {f"{name}.png": picture(number) for number, name in enumerate("bdf")}
    members = {name: encoded(image, "PNG") for name, image in sorted((odd | good).items())}
    with np.errstate(over="ignore"):
        said, facts, vectors = embedded(write_tar(tmp_path / "p.tar", members), tmp_path / "out")
    assert facts["vector"].to_pylist() == [-1, 0, -1, 1, -1, 2]
    assert (said["images"], said["vectors"], said["corrupt"]) == (6, 3, 0)
    for row, image in enumerate(good.values()):
        np.testing.assert_array_equal(vectors[row], alone(image))
    codes, reasons = judge(facts, QualitySettings(min_contrast=0), [])
    assert (codes[::2] == CODE["low_quality"]).all()
    assert "no finite, non-zero vector" in reasons[0]
    assert (codes[1::2] == -1).all()


def test_batches_and_threads_change_no_byte(tmp_path):
    path = write_tar(tmp_path / "p.tar", GOOD | BROKEN)
    said = [
        embedded(path, tmp_path / f"out{at}", batch_size=size, threads=threads, settings=settings)[
            0
        ]
        for at, (size, threads, settings) in enumerate(
            [(1, 1, None), (3, 4, None), (64, 2, EmbedSettings(decode_threads=7))]
        )
    ]
    assert said[0] == said[1] == said[2]


def test_the_order_of_members_changes_nothing_but_their_offsets(tmp_path):
    members = GOOD | BROKEN
    backwards = dict(reversed(members.items()))
    results = [
        embedded(write_tar(tmp_path / name / "p.tar", content), tmp_path / f"out-{name}")
        for name, content in (("one", members), ("two", backwards))
    ]
    assert results[0][1].drop_columns(["offset"]) == results[1][1].drop_columns(["offset"])
    np.testing.assert_array_equal(results[0][2], results[1][2])


def test_the_facts_are_those_of_the_bytes(tmp_path):
    data = encoded(picture(0, (70, 50)), "WEBP")
    note = json.dumps({"url": "https://example.org/\u00e9", "caption": "a \ud800 b"}).encode()
    path = write_tar(tmp_path / "p.tar", {"x/y.webp": data, "x/y.json": note})
    _, facts, _ = embedded(path, tmp_path / "out")
    [row] = facts.to_pylist()
    assert (row["key"], row["member"]) == ("p/x/y", "x/y.webp")
    assert (row["width"], row["height"], row["format"]) == (70, 50, "webp")
    assert row["bytes"] == len(data)
    assert path.read_bytes()[row["offset"] :][: row["bytes"]] == data
    assert row["url"] == "https://example.org/\u00e9"
    assert row["caption"].startswith("a ")


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (0.25, 0.25),
        (3, 3.0),
        ("0.5", 0.5),
        ("unsafe", None),
        (None, None),
        ([0.1], None),
        ({"a": 1}, None),
        (10**400, None),
        (True, 1.0),
    ],
)
def test_a_score_is_a_number_or_nothing(tmp_path, value, score):
    members = {"a.png": GOOD["00.png"], "a.json": json.dumps({"nsfw": value}).encode()}
    members["b.png"] = GOOD["01.png"]
    path = write_tar(tmp_path / "p.tar", members)
    _, facts, _ = embedded(path, tmp_path / "out", columns=["nsfw"])
    assert facts["score:nsfw"].to_pylist() == [score, None]


@pytest.mark.parametrize("content", [b"", b"not a tar", bytes(10_240)])
def test_a_part_without_images_is_empty(tmp_path, content):
    path = tmp_path / "p.tar"
    path.write_bytes(content)
    said, facts, vectors = embedded(path, tmp_path / "out")
    assert said["images"] == len(facts) == 0
    assert vectors.shape == (0, ColourEmbedder.dim)
    assert vectors.dtype == np.float16
    assert bool(said["problems"]) == (content != bytes(10_240))


def test_flat_and_patterned_pictures_differ_in_contrast(tmp_path):
    members = {
        "flat.png": encoded(Image.new("RGB", (300, 200), (90, 90, 90)), "PNG"),
        "half.png": encoded(
            Image.fromarray(np.repeat([[0], [255]], 150, 0).astype(np.uint8).repeat(300, 1)), "PNG"
        ),
    }
    _, facts, _ = embedded(write_tar(tmp_path / "p.tar", members), tmp_path / "out")
    flat, half = facts["contrast"].to_pylist()
    assert flat == 0
    assert half == pytest.approx(127.5, abs=2)


def test_a_changed_part_is_another_unit_and_its_name_is_a_plain_file_name(tmp_path):
    path = write_tar(tmp_path / "in" / "a b" / "é:0.tar", GOOD)
    [part] = list_parts("crawl", DatasetSettings(path=str(tmp_path / "in")))
    before = unit_name(part)
    assert "/" not in before
    assert "0-" in before
    assert before == unit_name(part)
    write_tar(path, GOOD | {"more.png": GOOD["00.png"]})
    [part] = list_parts("crawl", DatasetSettings(path=str(tmp_path / "in")))
    assert unit_name(part) != before


def test_what_changes_vectors_or_facts_changes_the_address():
    embedder = EmbedderSettings(kind="descriptor")
    base = (embedder, EmbedSettings(), ["nsfw"], 2)
    others = [
        (EmbedderSettings(kind="descriptor", decode="full"), *base[1:]),
        (embedder, EmbedSettings(max_pixels=1), *base[2:]),
        (*base[:2], [], 2),
        (*base[:3], 1),
    ]
    addresses = [embed_fingerprint(*args) for args in (base, *others)]
    assert len(set(addresses)) == 5
    assert addresses[0] == embed_fingerprint(embedder, EmbedSettings(decode_threads=3), *base[2:])
