import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from curate.calibration.propose import (
    calibrate_dedup,
    calibrate_retrieve,
    edits,
    nearest_other,
    render,
    same_picture,
    thumbnail,
)
from shared.embedders import EmbedderSettings, load
from shared.errors import LvdError

DIM = 64


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def noise(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def thumbnails(count: int) -> list[np.ndarray]:
    """Thumbnails of `count` pictures that have nothing to do with each other."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (count, 8, 8), dtype=np.uint8)
    return [np.asarray(Image.fromarray(grid).resize((64, 64))) for grid in coarse]


def photographs() -> list[Image.Image]:
    pictures = (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())
    return [Image.fromarray(picture).resize((240, 200)) for picture in pictures]


@pytest.fixture(scope="module")
def dedup_case():
    """40 pictures of unlike vectors, and for each 3 edited copies at cosines of about 0.9."""
    crawl = unit(noise(40, DIM, seed=1))
    edited = unit(crawl[:, None] + 0.06 * noise(40, 3, DIM, seed=2))
    return crawl, edited, thumbnails(40)


@pytest.mark.parametrize("size", [(240, 160), (1, 1), (3, 500)])
def test_edits_are_copies_of_any_size_and_repeat_with_the_generator(size):
    image = Image.effect_noise(size, 80).convert("RGB")
    first, second = (edits(image, np.random.default_rng(5)) for _ in range(2))
    assert list(first) == ["jpeg", "half", "blur", "brightness", "crop", "grey", "caption"]
    for name, edited in first.items():
        assert edited.mode == "RGB"
        assert edited.tobytes() == second[name].tobytes()


def test_edited_copies_are_the_same_picture_and_others_are_not():
    pictures = photographs()
    for at, picture in enumerate(pictures):
        for name, edited in edits(picture, np.random.default_rng(at)).items():
            if name != "caption":  # changes the shape; calibration never checks its own edits
                assert same_picture(thumbnail(picture), thumbnail(edited)), name
        for other in pictures[at + 1 :]:
            assert not same_picture(thumbnail(picture), thumbnail(other))


def test_flat_pictures_equal_flat_ones_only():
    grey, white = (thumbnail(Image.new("RGB", (9, 9), colour)) for colour in ("grey", "white"))
    assert same_picture(grey, white)
    assert not same_picture(grey, thumbnail(photographs()[0]))


def test_the_nearest_other_is_no_copy_and_asks_for_few_thumbnails(dedup_case):
    crawl, _, pictures = dedup_case
    hidden = unit(crawl[:10] + 0.01 * noise(10, DIM, seed=3))
    asked = []

    def look_up(row: int) -> np.ndarray:
        asked.append(row)
        return pictures[row % 40]

    found = nearest_other(crawl[:10], np.concatenate([crawl, hidden]), np.arange(10), look_up)
    expected = crawl[:10] @ np.concatenate([crawl, hidden]).T
    expected[np.arange(10), np.arange(10)] = expected[np.arange(10), np.arange(40, 50)] = -1
    np.testing.assert_allclose(found, expected.max(1), atol=1e-6)
    assert len(asked) == len(set(asked)) <= 30


def test_an_image_with_nothing_but_copies_has_no_other():
    vectors = np.ones((3, 4), np.float32) / 2
    one = thumbnails(1)[0]
    assert np.isnan(nearest_other(vectors, vectors, np.arange(3), lambda row: one)).all()


def test_the_dedup_threshold_lies_between_copies_and_non_copies(dedup_case):
    crawl, edited, pictures = dedup_case
    found = calibrate_dedup(crawl, edited, crawl, np.arange(40), pictures.__getitem__)
    assert found.negatives.quantiles["1"] < found.threshold < found.positives.quantiles["0"]
    assert (found.recall, found.false_positive_rate, found.f1) == (1, 0, 1)
    assert found.separates
    again = calibrate_dedup(crawl, edited, crawl, np.arange(40), pictures.__getitem__)
    assert found == again


def test_copies_that_hide_in_the_crawl_do_not_move_the_threshold(dedup_case):
    crawl, edited, pictures = dedup_case
    rows = np.arange(40)
    alone = calibrate_dedup(crawl, edited, crawl, rows, pictures.__getitem__)
    full = np.concatenate([crawl, edited[:, 0], crawl])
    hidden = calibrate_dedup(crawl, edited, full, rows, lambda row: pictures[row % 40])
    # Copies shift each image's nearest non-copy by their own noise, and by no more.
    assert hidden.threshold == pytest.approx(alone.threshold, abs=0.05)
    assert hidden.false_positive_rate == 0


def test_an_embedder_that_tells_nothing_is_recognised_and_drops_little(dedup_case):
    crawl, _, pictures = dedup_case
    rows = np.arange(40)
    alike = unit(np.ones(DIM) + 0.02 * crawl)
    edited = unit(np.ones(DIM) + 0.02 * noise(40, 3, DIM, seed=4))
    found = calibrate_dedup(alike, edited, alike, rows, pictures.__getitem__)
    assert not found.separates
    assert found.false_positive_rate <= 0.01
    assert "no threshold tells copies from others" in render(found)


def test_too_few_images_are_an_error_with_the_remedy(dedup_case):
    crawl, edited, pictures = dedup_case
    few = np.arange(3)
    with pytest.raises(LvdError, match=r"thresholds\.dedup"):
        calibrate_dedup(crawl[:3], edited[:3], crawl, few, pictures.__getitem__)
    with pytest.raises(LvdError, match=r"thresholds\.retrieve"):
        calibrate_retrieve(crawl[:3], crawl, few, pictures.__getitem__)


def test_the_retrieve_threshold_finds_nine_in_ten_of_the_seeds(dedup_case):
    crawl, _, pictures = dedup_case
    seeds = unit(np.eye(DIM)[0] + 0.1 * noise(40, DIM, seed=5))
    kin = unit(np.eye(DIM)[0] + 0.1 * noise(30, DIM, seed=6))
    mixed = np.concatenate([kin, crawl])
    found = calibrate_retrieve(seeds, mixed, np.arange(40), pictures.__getitem__)
    passing = (mixed @ seeds.T).max(1) >= found.threshold
    assert 0.9 <= found.recall <= 0.95
    assert found.crawl_share == pytest.approx(passing.mean())
    assert passing[:30].mean() >= 0.8
    assert passing[30:].mean() <= 0.05


def test_seeds_that_are_copies_of_each_other_do_not_raise_the_threshold(dedup_case):
    crawl, _, pictures = dedup_case
    seeds = unit(np.eye(DIM)[0] + 0.1 * noise(40, DIM, seed=5))
    alone = calibrate_retrieve(seeds, crawl, np.arange(40), pictures.__getitem__)
    twice = np.concatenate([seeds, seeds])
    found = calibrate_retrieve(twice, crawl, np.arange(80), lambda row: pictures[row % 40])
    assert found.threshold == alone.threshold


def test_a_calibration_prints_within_100_columns_and_is_json(dedup_case):
    crawl, edited, pictures = dedup_case
    rows = np.arange(40)
    dedup = calibrate_dedup(crawl, edited, crawl, rows, pictures.__getitem__, ("a", "b", "c"))
    retrieve = calibrate_retrieve(crawl, crawl, rows, pictures.__getitem__)
    for found in (dedup, retrieve):
        text = render(found)
        assert max(map(len, text.splitlines())) <= 100
        assert f"{found.kind} threshold {found.threshold}" in text
        assert text.count(">") == 1
        assert sum(found.positives.histogram) == found.positives.count
        assert json.loads(json.dumps(found.to_dict()))["threshold"] == found.threshold
    assert "recall by edit: a 100%, b 100%, c 100%" in render(dedup)


def test_the_descriptor_calibrates_on_real_pictures():
    embedder = load(EmbedderSettings(kind="descriptor"), 1)
    crops = [
        picture.crop((x, y, x + 80, y + 70))
        for picture in photographs()
        for x in (0, 80, 160)
        for y in (0, 130)
    ]

    def embed(images: list[Image.Image]) -> np.ndarray:
        return embedder.embed([embedder.prepare(image) for image in images])

    crawl = embed(crops)
    edited = [edits(crop, np.random.default_rng(at)) for at, crop in enumerate(crops)]
    vectors = np.stack([embed(list(copies.values())) for copies in edited])
    names = tuple(edited[0])
    found = calibrate_dedup(
        crawl, vectors, crawl, np.arange(len(crops)), lambda row: thumbnail(crops[row]), names
    )
    assert found.separates
    assert found.recall_by_edit["jpeg"] == 1
    assert found.recall >= 0.85
    assert found.false_positive_rate <= 0.1
