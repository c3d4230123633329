"""Filters of quality by the picture: what is measured, when it is read, and what is excluded."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_collection import files_of
from pictures import encoded, picture, write_tar
from PIL import Image, ImageFilter
from scipy import ndimage

from curate.catalogue.part_files import FACTS
from curate.embedding.decoder import Decoder
from curate.embedding.embed import Forwards, embed_part
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.filters.judge import judge
from curate.filters.picture import LOOK, MEASURES, SIDE, measure
from curate.filters.quality import QualitySettings
from curate.state import LocalState
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.embedders.settings import EmbedderSettings
from shared.pictures.images import ImageError

RNG = np.random.default_rng(0)
PHOTO = picture(5, (300, 200))
NOISE = Image.fromarray(RNG.integers(0, 256, (200, 300, 3)).astype(np.uint8))
TILES = np.kron(RNG.integers(0, 2, (20, 30)), np.full((10, 10), 255))
COLOURS = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8).repeat(10, 0).repeat(10, 1)
MADE = {
    "dark": Image.fromarray((np.asarray(NOISE) * 0.15).astype(np.uint8)),
    "bright": Image.fromarray(250 + np.asarray(NOISE) // 52),
    "sharp": Image.fromarray(COLOURS),
    "blurred": Image.fromarray(COLOURS).filter(ImageFilter.GaussianBlur(6)),
    "noise": NOISE,
    "two-tone": Image.fromarray(TILES.astype(np.uint8)).convert("RGB"),
    "flat": Image.new("RGB", (64, 64), (90, 90, 90)),
}
STRICT = {
    "min_brightness": 0.32,
    "max_brightness": 0.95,
    "min_entropy": 3,
    "min_sharpness": 50,
    "min_colour": 1,
}


def measured_by_hand(image):
    """Return the measures of a picture that is small enough, pixel by pixel."""
    width, height = image.size
    pixels = [[image.getpixel((x, y)) for x in range(width)] for y in range(height)]
    bright = sorted(
        math.sqrt(0.241 * r**2 + 0.691 * g**2 + 0.068 * b**2) / 255
        for line in pixels
        for r, g, b in line
    )

    def percentile(values, share):
        at = share / 100 * (len(values) - 1)
        low, high = values[math.floor(at)], values[math.ceil(at)]
        return low + (high - low) * (at - math.floor(at))

    grey = [
        [(19595 * r + 38470 * g + 7471 * b + 32768) >> 16 for r, g, b in line] for line in pixels
    ]
    values = [value for line in grey for value in line]
    entropy = -sum(
        share * math.log2(share)
        for share in (values.count(value) / len(values) for value in set(values))
    )
    sharpness = 0.0
    if min(width, height) >= 3:
        sharpness = ndimage.laplace(np.array(grey, np.float64))[1:-1, 1:-1].var()
    spread = sorted(max(pixel) - min(pixel) for line in pixels for pixel in line)
    return percentile(bright, 99), percentile(bright, 5), entropy, sharpness, percentile(spread, 99)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 2), (3, 3), (17, 11), (SIDE, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_the_measures_are_those_of_the_formulas(size, seed):
    rng = np.random.default_rng([seed, *size])
    image = Image.fromarray(rng.integers(0, 60 + 65 * seed, (*size[::-1], 3)).astype(np.uint8))
    found = measure(image)
    assert list(found) == MEASURES.names
    assert list(found.values()) == pytest.approx(measured_by_hand(image), rel=1e-12, abs=1e-12)


def test_the_measures_keep_to_their_ranges():
    black, white = (measure(Image.new("RGB", (20, 20), colour)) for colour in ("black", "white"))
    assert list(black.values()) == [0, 0, 0, 0, 0]
    assert list(white.values()) == pytest.approx([1, 1, 0, 0, 0], abs=1e-12)
    assert measure(Image.new("RGB", (20, 20), "red"))["colour"] == 255
    checks = np.indices((22, 22)).sum(0) % 2 * 255
    checks = measure(Image.fromarray(checks.astype(np.uint8)).convert("RGB"))
    assert checks["sharpness"] == 1_040_400
    assert checks["entropy"] == pytest.approx(1, abs=1e-12)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert measure(Image.fromarray(every).convert("RGB"))["entropy"] == 8


def test_a_large_picture_is_measured_by_the_means_of_its_pixels():
    small = RNG.integers(0, 256, (60, SIDE, 3)).astype(np.uint8)
    large = Image.fromarray(small.repeat(4, 0).repeat(4, 1))
    assert measure(large) == measure(Image.fromarray(small))
    assert measure(Image.new("RGB", (30_000, 1), "white"))["sharpness"] == 0


def judged(**settings):
    """Return the reasons of the made pictures that are excluded."""
    rows = [{"problem": "", **measure(image)} for image in MADE.values()]
    table = pa.table({name: [row[name] for row in rows] for name in ("problem", *MEASURES.names)})
    table = table.cast(pa.schema([("problem", pa.string()), *MEASURES]))
    quality = QualitySettings(min_side=None, max_aspect=None, min_contrast=None, **settings)
    _, reasons = judge(table, None, np.ones(len(rows), bool), quality)
    return {name: reason for name, reason in zip(MADE, reasons, strict=True) if reason}


@pytest.mark.parametrize(
    ("setting", "excluded", "said"),
    [
        ("min_brightness", {"dark"}, "dark: brightness (99th percentile) 0.1"),
        ("max_brightness", {"bright"}, "bright: brightness (5th percentile) 0.9"),
        ("min_entropy", {"bright", "two-tone", "flat"}, "little information: entropy in bits "),
        ("min_sharpness", {"bright", "blurred", "flat"}, "blurry: sharpness "),
        ("min_colour", {"two-tone", "flat"}, "grey: colour 0"),
    ],
)
def test_a_filter_excludes_its_kind_of_picture_and_says_why(setting, excluded, said):
    reasons = judged(**{setting: STRICT[setting]})
    assert reasons.keys() == excluded
    assert all(reason.startswith(said) for reason in reasons.values())
    side = "above" if setting.startswith("max") else "below"
    assert all(reason.endswith(f" is {side} {STRICT[setting]:g}") for reason in reasons.values())


def test_bounds_are_inclusive_and_without_a_setting_nothing_is_excluded():
    assert judged() == {}
    values = measure(MADE["flat"])
    exact = float(np.float32(values["brightness_p99"]))
    assert "flat" not in judged(min_brightness=exact, max_brightness=exact)
    assert "flat" in judged(min_brightness=exact + 1e-6)


MEMBERS = {f"{name}.png": encoded(image, "PNG") for name, image in MADE.items()}
MEMBERS |= {"photo.jpg": encoded(PHOTO), "large.jpg": encoded(picture(6, (1200, 900)))}
MEMBERS |= {"cut.jpg": encoded(PHOTO)[:-300], "text.png": b"no picture"}
DESCRIPTOR = EmbedderSettings(kind="descriptor", batch_size=4)


class Counted:
    """Embeds, and says which images were decoded and how often the network was called."""

    def __init__(self, monkeypatch, embedder=DESCRIPTOR):
        self.decoded, self.batches = [], 0
        decode, embed = Decoder.decode, Forwards.embed

        def count_decode(decoder, key, *args):
            self.decoded.append(key)
            return decode(decoder, key, *args)

        def count_embed(forwards, *args):
            self.batches += 1
            return embed(forwards, *args)

        monkeypatch.setattr(Decoder, "decode", count_decode)
        monkeypatch.setattr(Forwards, "embed", count_embed)
        self.embedder = embedder
        self.state = LocalState(Forwards((embedder,), 1))

    def __call__(self, path, work, *, measured, threads=2):
        """Embed the one part at a path; return its request and its content."""
        self.decoded.clear()
        self.batches = 0
        [part] = list_parts("crawl", DatasetSettings(path=str(path), folder_parts=1))
        looks = ("measures",) if measured else ()
        request = EmbedRequest(work, EmbedSettings(), (self.embedder,), (), threads, looks)
        (work / "scratch").mkdir(parents=True, exist_ok=True)
        content = embed_part(self.state, part, request, scratch=work / "scratch")["content"]
        return request, content


@pytest.fixture
def counted(monkeypatch):
    return Counted(monkeypatch)


def made_files(request, content):
    return {unit.parent.parent.name: files_of(unit) for unit in request.units(content)}


def test_measures_that_are_wanted_later_are_those_of_one_pass_and_embed_nothing(tmp_path, counted):
    path = write_tar(tmp_path / "p.tar", MEMBERS)
    together = made_files(*counted(path, tmp_path / "one", measured=True, threads=1))
    assert together.keys() == {"facts", "measures", "vectors"}
    plain = made_files(*counted(path, tmp_path / "two", measured=False))
    assert counted.batches
    request, content = counted(path, tmp_path / "two", measured=True, threads=5)
    assert counted.batches == 0
    assert len(counted.decoded) == len(set(counted.decoded)) == len(MEMBERS) - 1
    assert made_files(request, content)["measures"] == together["measures"]
    assert plain["facts"] == together["facts"] == made_files(request, content)["facts"]
    counted(path, tmp_path / "two", measured=True)
    assert counted.decoded == []
    facts = pq.read_table(request.facts / content / FACTS)
    table = pq.read_table(request.look("measures") / content / LOOK.file)
    assert table.schema == MEASURES
    rows = dict(zip(facts["name"].to_pylist(), table.to_pylist(), strict=True))
    assert {name for name, row in rows.items() if None in row.values()} == {"cut", "text"}
    for name, image in MADE.items():
        assert rows[name] == pytest.approx(measure(image), rel=1e-6)


def test_of_a_part_that_grew_only_what_was_never_measured_is_read(tmp_path, counted):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in MEMBERS.items():
        (folder / name).write_bytes(data)
    counted(folder, tmp_path / "plain", measured=False)
    counted(folder, tmp_path / "measured", measured=True)
    (folder / "new.png").write_bytes(encoded(picture(9), "PNG"))
    clean = made_files(*counted(folder, tmp_path / "clean", measured=True))
    assert made_files(*counted(folder, tmp_path / "measured", measured=True)) == clean
    assert set(counted.decoded) == {"new.png", "cut.jpg"}
    assert made_files(*counted(folder, tmp_path / "plain", measured=True)) == clean
    assert set(counted.decoded) == {*MEMBERS, "new.png"} - {"text.png"}
    assert counted.batches == 1  # of the new image alone


def test_a_picture_that_cannot_be_measured_is_told_so_and_changes_no_fact(tmp_path, monkeypatch):
    counted = Counted(monkeypatch, DESCRIPTOR.model_copy(update={"decode": "full"}))
    path = write_tar(tmp_path / "p.tar", MEMBERS)
    plain = made_files(*counted(path, tmp_path / "plain", measured=False))
    decode = Decoder.decode

    def refuse(decoder, key, data, header, reduce_to):
        if reduce_to == SIDE and "large" in key:
            raise ImageError("decoding takes over 60 s")
        return decode(decoder, key, data, header, reduce_to)

    monkeypatch.setattr(Decoder, "decode", refuse)
    request, content = counted(path, tmp_path / "work", measured=True)
    made = made_files(request, content)
    assert {kind: made[kind] for kind in plain} == plain
    facts = pq.read_table(request.facts / content / FACTS)
    table = pq.read_table(request.look("measures") / content / LOOK.file)
    for name, values in table.to_pydict().items():
        facts = facts.append_column(name, pa.array(values, pa.float32()))
    quality = QualitySettings(min_entropy=0)
    _, reasons = judge(facts, None, np.ones(len(facts), bool), quality)
    said = dict(zip(facts["name"].to_pylist(), reasons, strict=True))
    assert said["large"] == "entropy was not measured"
    assert said["photo"] == ""


def test_no_embedder_has_a_say_in_the_measures(tmp_path):
    full = EmbedderSettings(kind="descriptor", decode="full")
    one, other = (
        EmbedRequest(tmp_path, EmbedSettings(), embedders, (), 1, ("measures",))
        for embedders in ((DESCRIPTOR,), (full, DESCRIPTOR))
    )
    assert one.facts != other.facts
    assert one.look("measures") == other.look("measures")
    limited = EmbedRequest(tmp_path, EmbedSettings(max_pixels=9), (full,), (), 1, ("measures",))
    assert limited.look("measures") != one.look("measures")
