"""Calibration shows the pairs nearest to a proposed threshold, on both of its sides."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_collection import from_vectors
from pictures import encoded, write_tar
from PIL import Image, ImageColor

from curate.calibration import sides
from curate.calibration.edits import edits_of
from curate.calibration.measure import CalibrateSettings
from curate.calibration.near_pairs import look_at_nearest
from curate.calibration.sides import dedup_sides, nearest, retrieve_sides
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.embedding.stage import catalogued, embed
from curate.execution.session import open_runner
from curate.neighbours.search import unit
from curate.report.both_sides import dedup_sheet, draw_sides, with_edits
from curate.stage import EngineSettings
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.embedders.settings import EmbedderSettings

ALL = CalibrateSettings(originals=8)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return all cosines of stored vectors, in float64."""
    units = [
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for vectors in (one.astype(np.float64), other.astype(np.float64))
    ]
    return units[0] @ units[1].T


def made(tmp_path, count, seed, name="crawl"):
    vectors = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float16)
    work = tmp_path / name
    collection = from_vectors(work, vectors, name=name)
    return collection, collection.vectors(np.arange(count))


def expected(values: np.ndarray, threshold: float, most: int = sides.MOST):
    """Return the values nearest to the threshold on both sides, nearest first."""
    return {
        "above": np.sort(values[values >= threshold])[:most],
        "below": np.sort(values[values < threshold])[::-1][:most],
    }


@pytest.mark.parametrize("threshold", [0.3, 0.92, 0.95, 1.0])
def test_the_pairs_that_were_looked_at_nearest_to_the_threshold_are_shown(
    tmp_path, monkeypatch, threshold
):
    crawl, vectors = made(tmp_path, 130, 1)
    thumbnails = np.random.default_rng(5).integers(0, 256, (130, 32, 32), np.uint8)
    rest = np.zeros(130, bool), lambda row: thumbnails[row], lambda one, other: "other"
    whole = look_at_nearest(unit(vectors), *rest)
    monkeypatch.setattr(sides, "load_looked", lambda _: whole)
    looked = whole.others
    edited = np.random.default_rng(2).uniform(0.5, 1, (9, 3)).astype(np.float32)
    known = (np.arange(9), ("crop", "jpeg", "grey"), edited)
    monkeypatch.setattr(sides, "load_edited", lambda *_: known)
    found = dedup_sides(crawl, threshold, ALL, tmp_path, [], out=tmp_path)

    exact = cosines(vectors, vectors)
    pairs = {
        frozenset(pair) for pair in np.argwhere(np.triu(exact > looked.lowest - 1e-6, 1)).tolist()
    }
    assert len(pairs) == len(looked.one)  # none is a copy, so each of them was looked at
    values = np.array([exact[tuple(pair)] for pair in pairs])
    for side, told in expected(values, threshold).items():
        shown = found["neighbours"][side]
        np.testing.assert_allclose([pair["cosine"] for pair in shown], told, atol=1e-6)
        for pair in shown:
            ends = crawl.find(pair["key"]), crawl.find(pair["other"])
            assert frozenset(ends) in pairs
            assert exact[ends] == pytest.approx(pair["cosine"], abs=1e-6)
    for side, told in expected(edited, np.float32(threshold)).items():
        shown = found["edited"][side]
        np.testing.assert_array_equal([pair["cosine"] for pair in shown], told)
        for pair in shown:
            column = known[1].index(pair["edit"])
            assert edited[crawl.find(pair["key"]), column] == np.float32(pair["cosine"])


@pytest.mark.parametrize("threshold", [-1.0, 0.7, 0.9])
def test_crawled_images_stand_beside_their_nearest_seed_image(tmp_path, threshold):
    crawl, vectors = made(tmp_path, 90, 3)
    seed, seeds = made(tmp_path, 40, 4, "seed")
    found = retrieve_sides(crawl, seed, threshold, ALL, out=tmp_path)["neighbours"]
    exact = cosines(vectors, seeds)
    for side, told in expected(exact.max(1), threshold).items():
        np.testing.assert_allclose([pair["cosine"] for pair in found[side]], told, atol=1e-6)
        for pair in found[side]:
            row, column = crawl.find(pair["key"]), seed.find(pair["other"])
            assert exact[row].argmax() == column
    assert bool(found["below"]) == (threshold > -1)


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(0, 10), st.integers(1, 5))
def test_what_is_nearest_does_not_depend_on_ties(values, threshold, most):
    cosines = np.array(values, np.float32) / 8
    found = nearest(cosines, threshold / 8, most)
    for side, told in expected(cosines, threshold / 8, most).items():
        assert cosines[found[side]].tolist() == told.tolist()
        for one, other in zip(found[side], found[side][1:], strict=False):
            assert cosines[one] != cosines[other] or one < other


def pair(cosine, key, **more):
    return {"key": key, "cosine": cosine, **more}


@pytest.fixture
def pool(tmp_path):
    """Return the path of a tar of four colours, and what is embedded of it."""
    colours = ("red", "green", "blue", "white")
    members = {f"{name}.png": encoded(Image.new("RGB", (40, 30), name), "PNG") for name in colours}
    path = write_tar(tmp_path / "in" / "p.tar", members)
    parts = list_parts("crawl", DatasetSettings(path=str(path)))
    descriptor = EmbedderSettings(kind="descriptor")
    request = EmbedRequest(tmp_path / "work", EmbedSettings(), (descriptor,), (), 1)
    work = tmp_path / "work"
    with open_runner(work, EngineSettings(), "inline") as runner, runner.at_work("embed"):
        crawl = catalogued(runner, embed(runner, "crawl", "crawl", parts, request), descriptor)
    keys = crawl.collection.keys(np.arange(4))
    return path, crawl, {key.rpartition("/")[2]: key for key in keys}


def both(keys):
    near = {
        "above": [pair(0.9, keys["red"], other=keys["green"])],
        "below": [pair(0.8, keys["blue"], other=keys["red"])],
    }
    edited = {"above": [pair(0.95, keys["blue"], edit="border")], "below": []}
    return {"dedup": {"neighbours": near, "edited": edited}, "retrieve": {"neighbours": near}}


def drawn(folder, crawl, keys, tmp_path, name="dedup"):
    thresholds = {"dedup": 0.85, "retrieve": 0.85}
    draw_sides(folder, both(keys), thresholds, crawl, crawl, 0, 10**6, tmp_path)
    return (folder / f"{name}.png").read_bytes()


def shown(png: bytes) -> list[str]:
    """Return which of the pool's pictures are on a sheet."""
    counts = Image.open(io.BytesIO(png)).convert("RGB").getcolors(10**6)
    large = [colour for count, colour in counts if count > 1_000]
    return [
        name
        for name in ("red", "green", "blue")
        if any(np.abs(np.subtract(ImageColor.getrgb(name), each)).max() < 8 for each in large)
    ]


def test_both_sides_are_drawn_to_the_same_bytes(pool, tmp_path):
    _, crawl, keys = pool
    for name in ("dedup", "retrieve"):
        first, second = (
            drawn(tmp_path / time, crawl, keys, tmp_path, name) for time in ("one", "two")
        )
        assert first == second
        assert shown(first) == ["red", "green", "blue"]


def test_words_stand_in_the_place_of_what_cannot_be_read(pool, tmp_path):
    path, crawl, keys = pool
    whole = drawn(tmp_path / "one", crawl, keys, tmp_path)
    path.unlink()
    bare = drawn(tmp_path / "two", crawl, keys, tmp_path)
    assert Image.open(io.BytesIO(bare)).size == Image.open(io.BytesIO(whole)).size
    assert shown(bare) == []


def test_a_side_without_pairs_says_so():
    sheet = dedup_sheet(both({name: name for name in ("red", "green", "blue")})["dedup"], 0.85)
    assert [len(strip.tiles) for strip in sheet.strips] == [2, 2, 2, 0]
    assert [("none in the sample" in strip.heading) for strip in sheet.strips] == [0, 0, 0, 1]


def test_an_edited_copy_is_the_one_that_was_measured(pool):
    _, crawl, keys = pool
    data = encoded(Image.new("RGB", (40, 30), "blue"), "PNG")
    read = with_edits({keys["blue"]: data}.get, both(keys)["dedup"]["edited"], 5, 10**6)
    [fact] = crawl.collection.facts(
        np.array([crawl.collection.find(keys["blue"])]), ["sha256"]
    ).to_pylist()
    copies = edits_of(Image.new("RGB", (40, 30), "blue"), fact["sha256"], 5)
    made = Image.open(io.BytesIO(read(f"{keys['blue']} · border"))).convert("RGB")
    assert made.tobytes() == copies["border"].tobytes()
    assert read(keys["blue"]) == data
