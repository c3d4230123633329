"""Embedding a part: a row for every image, a vector for every usable one, whatever is in it."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_collection import files_of
from pictures import (
    ColourEmbedder,
    ColourForwards,
    colour_request,
    embed_by_colours,
    encoded,
    picture,
    write_tar,
)
from PIL import Image

from curate.catalogue.part_files import FACTS, SCORES, VALID, VECTORS
from curate.embedding import embed
from curate.embedding.decoder import Decoder
from curate.embedding.request import EmbedRequest, EmbedSettings, unit_name
from curate.filters.decisions import CODE
from curate.filters.judge import judge
from curate.filters.quality import QualitySettings
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.embedders.settings import EmbedderSettings
from shared.storage.commits import UnderWay, committed, read_manifest


class Embedded:
    """What is made of a dataset of one part: facts, vectors, which are valid, and what is said."""

    def __init__(self, path, work, **options):
        [part] = list_parts("crawl", DatasetSettings(path=str(path)))
        request = colour_request(work, **options)
        content = embed_by_colours(part, request)
        facts, *scores, vectors = request.units(content)
        self.said = {**committed(vectors), **committed(facts)}
        self.facts = pq.read_table(facts / FACTS)
        self.vectors = np.load(vectors / VECTORS)
        self.valid = np.load(vectors / VALID)
        self.scores = [pq.read_table(unit / SCORES) for unit in scores]


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
    made = Embedded(path, tmp_path / "work")
    assert made.facts["name"].to_pylist() == sorted(n.split(".")[0] for n in GOOD | BROKEN)
    assert {k: made.said[k] for k in ("images", "vectors", "corrupt")} == {
        "images": 18,
        "vectors": 10,
        "corrupt": 8,
    }
    members, problems = (made.facts[name].to_pylist() for name in ("member", "problem"))
    assert {m for m, problem in zip(members, problems, strict=True) if problem} == set(BROKEN)
    assert not any("\n" in problem for problem in problems)
    assert [m for m, valid in zip(members, made.valid, strict=True) if valid] == list(GOOD)
    for number, vector in enumerate(made.vectors[made.valid]):
        np.testing.assert_array_equal(vector, alone(picture(number)))
    assert not made.vectors[~made.valid].any()


def test_vectors_that_are_not_finite_or_zero_are_low_quality(tmp_path):
    flat = {"a": (0, 0, 0), "c": (0, 0, 255), "e": (255, 0, 0)}
    odd = {f"{name}.png": Image.new("RGB", (48, 40), colour) for name, colour in flat.items()}
    good = {f"{name}.png": picture(number) for number, name in enumerate("bdf")}
    members = {name: encoded(image, "PNG") for name, image in sorted((odd | good).items())}
    with np.errstate(over="ignore", invalid="ignore"):
        made = Embedded(write_tar(tmp_path / "p.tar", members), tmp_path / "work")
    assert made.valid.tolist() == [False, True] * 3
    assert (made.said["images"], made.said["vectors"], made.said["corrupt"]) == (6, 3, 0)
    for row, image in enumerate(good.values()):
        np.testing.assert_array_equal(made.vectors[2 * row + 1], alone(image))
    assert not made.vectors[::2].any()
    codes, reasons = judge(made.facts, None, made.valid, QualitySettings(min_contrast=0))
    assert (codes[::2] == CODE["low_quality"]).all()
    assert "no finite, non-zero vector" in reasons[0]
    assert (codes[1::2] == -1).all()


def test_batches_and_threads_change_no_byte(tmp_path):
    path = write_tar(tmp_path / "p.tar", GOOD | BROKEN)
    ways = [
        {"batch_size": 1, "threads": 1},
        {"batch_size": 3, "threads": 4},
        {"batch_size": 64, "settings": EmbedSettings(decode_threads=7)},
    ]
    made = []
    for at, options in enumerate(ways):
        Embedded(path, tmp_path / str(at), **options)
        made.append({**files_of(tmp_path / str(at) / "facts")})
        made[-1] |= {
            name: data
            for name, data in files_of(tmp_path / str(at) / "vectors").items()
            if name.endswith(".npy")  # the manifest says how many threads there were
        }
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 4


def test_a_part_at_work_says_how_far_it_is_and_what_it_holds(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(UnderWay, "write", lambda self, beside: said.append(self))
    monkeypatch.setattr(embed, "SAYS_EVERY", 0.0)
    path = write_tar(tmp_path / "p.tar", GOOD)
    Embedded(path, tmp_path / "work")
    assert said == [UnderWay(done, 10, path.stat().st_size) for done in range(11)]


@pytest.mark.parametrize("threads", [1, 7])
def test_the_same_bytes_are_decoded_and_embedded_once(tmp_path, monkeypatch, threads):
    copies = {f"{name[:2]}{suffix}": GOOD[name] for name in list(GOOD)[:3] for suffix in "bcd"}
    bad = {f"{name[:2]}z": BROKEN[name] for name in ("00a.jpg", "02a.png")}
    named = {f"{stem}.png": data for stem, data in (copies | bad).items()}
    path = write_tar(tmp_path / "p.tar", GOOD | BROKEN | named)
    plain = Embedded(write_tar(tmp_path / "plain" / "p.tar", GOOD | BROKEN), tmp_path / "work")
    seen, decoded = [], []
    monkeypatch.setattr(
        *(ColourForwards, "embed"),
        lambda self, place, batch: seen.extend(batch) or ColourEmbedder().embed(batch),
    )
    decode = Decoder.decode
    monkeypatch.setattr(
        *(Decoder, "decode"),
        lambda self, key, data, *how: decoded.append(data) or decode(self, key, data, *how),
    )
    settings = EmbedSettings(decode_threads=threads)
    made = Embedded(path, tmp_path / "more", settings=settings)
    assert len(seen) == len({image.tobytes() for image in seen}) == len(GOOD)
    assert len(decoded) == len(set(decoded))
    assert made.said["images"] == len(GOOD | BROKEN) + len(named)
    assert made.said["vectors"] == made.valid.sum() == len(GOOD) + len(copies)
    assert made.said["corrupt"] == len(BROKEN) + len(bad)
    facts = ("sha256", "width", "height", "format", "bytes", "problem", "contrast")
    known = {
        fact["sha256"]: (fact, vector.tolist(), valid)
        for fact, vector, valid in zip(
            plain.facts.select(facts).to_pylist(), plain.vectors, plain.valid, strict=True
        )
    }
    for fact, vector, valid in zip(
        made.facts.select(facts).to_pylist(), made.vectors, made.valid, strict=True
    ):
        assert (fact, vector.tolist(), valid) == known[fact["sha256"]]


def test_what_fails_for_one_image_fails_for_all_of_the_same_bytes(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "p.tar", {f"{n}.png": GOOD["00.png"] for n in range(9)})

    def fail(self, key, data, *how):
        raise OSError("the disk is gone")

    monkeypatch.setattr(Decoder, "decode", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        Embedded(path, tmp_path / "work", settings=EmbedSettings(decode_threads=4))


def test_the_order_of_members_changes_nothing_but_their_offsets(tmp_path):
    members = GOOD | BROKEN
    backwards = dict(reversed(members.items()))
    one, two = (
        Embedded(write_tar(tmp_path / name / "p.tar", content), tmp_path / name / "work")
        for name, content in (("one", members), ("two", backwards))
    )
    assert one.facts.drop_columns(["offset"]) == two.facts.drop_columns(["offset"])
    assert one.facts["offset"] != two.facts["offset"]
    np.testing.assert_array_equal(one.vectors, two.vectors)


def test_the_facts_are_those_of_the_bytes(tmp_path):
    data = encoded(picture(0, (70, 50)), "WEBP")
    note = json.dumps({"url": "https://example.org/\u00e9", "caption": "a \ud800 b"}).encode()
    path = write_tar(tmp_path / "p.tar", {"x/y.webp": data, "x/y.json": note})
    [row] = Embedded(path, tmp_path / "work").facts.to_pylist()
    assert (row["name"], row["member"]) == ("x/y", "x/y.webp")
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
    [scores] = Embedded(path, tmp_path / "work", columns=["nsfw"]).scores
    assert scores["score:nsfw"].to_pylist() == [score, None]


@pytest.mark.parametrize("content", [b"", b"not a tar", bytes(10_240)])
def test_a_part_without_images_is_empty(tmp_path, content):
    path = tmp_path / "p.tar"
    path.write_bytes(content)
    made = Embedded(path, tmp_path / "work")
    assert made.said["images"] == len(made.facts) == len(made.valid) == 0
    assert made.vectors.shape == (0, ColourEmbedder.dim)
    assert made.vectors.dtype == np.float16
    assert bool(made.said["problems"]) == (content != bytes(10_240))


def test_flat_and_patterned_pictures_differ_in_contrast(tmp_path):
    members = {
        "flat.png": encoded(Image.new("RGB", (300, 200), (90, 90, 90)), "PNG"),
        "half.png": encoded(
            Image.fromarray(np.repeat([[0], [255]], 150, 0).astype(np.uint8).repeat(300, 1)), "PNG"
        ),
    }
    made = Embedded(write_tar(tmp_path / "p.tar", members), tmp_path / "work")
    flat, half = made.facts["contrast"].to_pylist()
    assert flat == 0
    assert half == pytest.approx(127.5, abs=2)


def test_the_name_of_a_unit_is_a_plain_file_name_of_its_own(tmp_path):
    for name in ("a b/é:0.tar", "a_b/é:0.tar", "a b/é_0.tar"):
        write_tar(tmp_path / name, GOOD)
    parts = list_parts("crawl", DatasetSettings(path=str(tmp_path)))
    names = [unit_name(part) for part in parts]
    assert len(set(names)) == 3
    assert all(Path(name).name == name and "0-" in name for name in names)


def test_what_changes_vectors_or_facts_changes_their_place(tmp_path):
    plain = EmbedderSettings(kind="descriptor")
    full = EmbedderSettings(kind="descriptor", decode="full")
    usual = EmbedSettings()

    def places(embedders=(plain,), settings=usual, columns=("nsfw",), threads=2):
        request = EmbedRequest(tmp_path, settings, embedders, columns, threads)
        return request.facts, request.scores, request.vectors(embedders[0])

    def changed(**others):
        pairs = zip(("facts", "scores", "vectors"), places(), places(**others), strict=True)
        return [name for name, before, after in pairs if before != after]

    assert changed(embedders=(full,)) == ["facts", "vectors"]
    assert changed(settings=EmbedSettings(max_pixels=1)) == ["facts", "vectors"]
    assert changed(settings=EmbedSettings(decode_seconds=1)) == ["facts", "vectors"]
    assert changed(columns=()) == ["scores"]
    assert changed(embedders=(plain, full)) == []
    assert changed(settings=EmbedSettings(decode_threads=3), threads=1) == []
    assert changed(embedders=(plain.model_copy(update={"batch_size": 7}),)) == []


def test_each_embedder_s_vectors_are_made_once_whatever_the_others(tmp_path):
    path = write_tar(tmp_path / "p.tar", GOOD | BROKEN)
    [part] = list_parts("crawl", DatasetSettings(path=str(path)))
    one = colour_request(tmp_path / "work")
    other = EmbedderSettings(kind="descriptor", decode="full")
    both = EmbedRequest(one.work, one.settings, (*one.embedders, other), (), 2)
    content = embed_by_colours(part, one)
    before = {unit: unit.stat().st_ino for unit in one.units(content)}
    assert embed_by_colours(part, both) == content
    assert {unit: unit.stat().st_ino for unit in one.units(content)} == before
    first, second = (np.load(both.vectors(e) / content / VECTORS) for e in both.embedders)
    np.testing.assert_array_equal(first, second)
    assert committed(both.vectors(other) / content) == {"images": 18, "vectors": 10}
    manifest = read_manifest(both.vectors(other) / content)
    assert manifest["runtime"] == {"device": "imagined"}  # of where the forward pass is


def test_who_an_embedder_is_is_asked_once_for_a_request_and_not_for_each_part(
    tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr("curate.embedding.request.identity", lambda each: asked.append(each) or {})
    request = colour_request(tmp_path)
    folders = {unit.parent for content in "abcdef" for unit in request.units(content)}
    assert len(folders) == 2
    assert len(asked) == 2
