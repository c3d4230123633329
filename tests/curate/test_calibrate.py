import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from curate.calibration import dedup_threshold
from curate.calibration.dedup_threshold import calibrate_dedup
from curate.calibration.edits import edits
from curate.calibration.near_pairs import look_at_nearest
from curate.calibration.retrieve_threshold import (
    RetrieveCalibration,
    calibrate_retrieve,
    nearest_other,
)
from curate.calibration.same_picture import same_picture, thumbnail
from curate.pixels.same import judge
from shared.embedders.embedder import load
from shared.embedders.settings import EmbedderSettings
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
    return [thumbnail(Image.fromarray(grid).resize((64, 64))) for grid in coarse]


def photographs() -> list[Image.Image]:
    pictures = (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())
    return [Image.fromarray(picture).resize((240, 200)) for picture in pictures]


EDITS = ["crop", "jpeg", "third", "caption", "border", "colour", "rotation", "mirror", "grey"]


@pytest.fixture(scope="module")
def pool():
    """40 pictures of unlike vectors."""
    return unit(noise(40, DIM, seed=1)), thumbnails(40)


@pytest.mark.parametrize("size", [(240, 160), (1, 1), (3, 500)])
def test_edits_are_copies_of_any_size_and_repeat_with_the_generator(size):
    image = Image.effect_noise(size, 80).convert("RGB")
    first, second = (edits(image, np.random.default_rng(5)) for _ in range(2))
    assert list(first) == [*EDITS, "blur", "brightness"]
    for name, edited in first.items():
        assert edited.mode == "RGB"
        assert edited.tobytes() == second[name].tobytes()


def test_edited_copies_are_the_same_picture_and_others_are_not():
    pictures = photographs()
    for at, picture in enumerate(pictures):
        for name, edited in edits(picture, np.random.default_rng(at)).items():
            assert same_picture(thumbnail(picture), thumbnail(edited)), name
        for other in pictures[at + 1 :]:
            assert not same_picture(thumbnail(picture), thumbnail(other))


def test_flat_pictures_equal_flat_ones_only():
    grey, white = (thumbnail(Image.new("RGB", (9, 9), colour)) for colour in ("grey", "white"))
    assert same_picture(grey, white)
    assert not same_picture(grey, thumbnail(photographs()[0]))


def test_the_nearest_other_is_no_copy_and_asks_for_few_thumbnails(pool):
    crawl, pictures = pool
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


def test_too_few_seed_images_are_an_error_with_the_remedy(pool):
    crawl, pictures = pool
    with pytest.raises(LvdError, match=r"thresholds\.retrieve"):
        calibrate_retrieve(crawl[:3], crawl, np.arange(3), pictures.__getitem__)


def test_the_retrieve_threshold_finds_nine_in_ten_of_the_seeds(pool):
    crawl, pictures = pool
    seeds = unit(np.eye(DIM)[0] + 0.1 * noise(40, DIM, seed=5))
    kin = unit(np.eye(DIM)[0] + 0.1 * noise(30, DIM, seed=6))
    mixed = np.concatenate([kin, crawl])
    found = calibrate_retrieve(seeds, mixed, np.arange(40), pictures.__getitem__)
    passing = (mixed @ seeds.T).max(1) >= found.threshold
    assert 0.9 <= found.recall <= 0.95
    assert found.crawl_share == pytest.approx(passing.mean())
    assert passing[:30].mean() >= 0.8
    assert passing[30:].mean() <= 0.05


def test_seeds_that_are_copies_of_each_other_do_not_raise_the_threshold(pool):
    crawl, pictures = pool
    seeds = unit(np.eye(DIM)[0] + 0.1 * noise(40, DIM, seed=5))
    alone = calibrate_retrieve(seeds, crawl, np.arange(40), pictures.__getitem__)
    twice = np.concatenate([seeds, seeds])
    found = calibrate_retrieve(twice, crawl, np.arange(80), lambda row: pictures[row % 40])
    assert found.threshold == alone.threshold


def test_a_calibration_prints_within_100_columns_and_is_json(pool):
    crawl, pictures = pool
    found = calibrate_retrieve(crawl, crawl, np.arange(40), pictures.__getitem__)
    text = found.render()
    assert max(map(len, text.splitlines())) <= 100
    assert f"retrieve threshold {found.threshold}" in text
    assert text.count(">") == 1
    assert sum(found.histograms.positives.histogram) == found.histograms.positives.count
    assert RetrieveCalibration.restored(json.loads(json.dumps(found.to_dict()))) == found


def test_the_descriptor_calibrates_on_real_pictures():
    embedder = load(EmbedderSettings(kind="descriptor"), 1)
    crops = [
        picture.crop((x, y, x + 80, y + 70))
        for picture in photographs()
        for x in (0, 80, 160)
        for y in (0, 130)
    ]

    def embed(images: list[Image.Image]) -> np.ndarray:
        return unit(embedder.embed([embedder.prepare(image) for image in images]))

    crawl = embed(crops)
    edited = [edits(crop, np.random.default_rng(at)) for at, crop in enumerate(crops)]
    vectors = np.stack([embed(list(copies.values())) for copies in edited])
    cosines = np.einsum("ned,nd->ne", vectors, crawl)
    photographs_only = np.zeros(len(crops), bool)
    looked = look_at_nearest(
        crawl,
        photographs_only,
        lambda row: thumbnail(crops[row]),
        lambda one, other: judge(crops[one], crops[other]),
    )
    names = tuple(edited[0])
    found = calibrate_dedup(looked, len(crops), 0.99, cosines, names, photographs_only)
    assert found.separates
    assert found.recall_by_edit["jpeg"] >= 0.9
    assert found.recall >= 0.5
    assert found.false_per_thousand[0] == 0


def test_a_crawl_of_which_filters_leave_nothing_is_said_to_be_that(small_run):
    words = ("--set=quality.min_side=9999", "--set=dedup.threshold=auto")
    status, said = small_run("run", f"--out={small_run.root / 'none'}", *words)
    assert status == 2
    assert "0 images of the crawl that filters and lists leave are too few" in " ".join(said)


def test_a_crawl_of_one_picture_is_not_measured_and_a_number_is_used_all_the_same(
    small_run, monkeypatch
):
    monkeypatch.setattr(dedup_threshold, "FEWEST_PAIRS", 10**9)
    words = [
        f"--out={small_run.root / 'alike'}",
        "--set=dedup.precision=0.9871",
    ]  # not measured before
    status, said = small_run("run", *words, "--set=dedup.threshold=auto")
    assert status == 2
    assert "needs 1000000000: say --set dedup.threshold=..." in " ".join(said)
    status, said = small_run("run", *words, "--set=dedup.threshold=0.9")
    assert status == 0
    assert "dedup.threshold 0.9 is used unmeasured" in " ".join(said)
