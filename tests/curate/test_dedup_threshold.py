"""The dedup threshold by precision, against pools whose pairs are counted by brute force."""

import json
from dataclasses import replace

import numpy as np
import pytest
from looked_pairs import alone, none_of

from curate.calibration import near_pairs, second_look
from curate.calibration.dedup_threshold import DedupCalibration, calibrate_dedup
from curate.calibration.near_pairs import Looked, LookedPairs, look_at_nearest, nearest_pairs
from curate.calibration.tail import depth, draw_bootstrap, false_shares, survival, true_shares
from curate.neighbours.search import unit
from shared.errors import LvdError

NAMES = ("a", "b")
PHOTOGRAPHS = np.zeros(50, bool)


def clustered(count: int, seed: int) -> np.ndarray:
    """Return unit vectors around 200 centres of very different weight."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(200, 16))
    share = np.random.default_rng(8).dirichlet(np.full(200, 0.3))
    return unit(centres[rng.choice(200, count, p=share)] + 0.5 * rng.normal(size=(count, 16)))


def different(vectors: np.ndarray, enough: int = 500) -> LookedPairs:
    """Return the nearest pairs of vectors, all of them of different pictures."""
    one, other, cosine = nearest_pairs(vectors, enough)
    none = np.zeros(len(one), bool)
    weight = np.ones(len(one))
    return LookedPairs(
        len(vectors), one, other, cosine, weight, none, none, float(cosine[-1]), len(one)
    )


def with_copies(images: int, copies: int, similarity: float, seed: int = 0) -> LookedPairs:
    """Return nearest pairs of clustered images, and as many pairs of copies of some of them."""
    rng = np.random.default_rng(seed)
    looked = different(clustered(images, seed))
    one = rng.choice(images // 2, copies, replace=False)
    cosine = np.append(looked.cosine, np.full(copies, similarity, np.float32))
    order = np.argsort(-cosine, kind="stable")
    return LookedPairs(
        images,
        np.append(looked.one, one)[order],
        np.append(looked.other, one + images // 2)[order],
        cosine[order],
        np.ones(len(order)),
        np.append(looked.same, np.ones(copies, bool))[order],
        np.zeros(len(order), bool),
        looked.lowest,
        len(order),
    )


def told_apart(one: int, other: int) -> str:
    """Stand in for a finer look, which is asked of what thumbnails call different alone."""
    assert one % 400 != other % 400
    return "other"


def edited(at: float) -> np.ndarray:
    return np.full((50, 2), at, np.float32)


def test_the_nearest_pairs_are_those_of_brute_force():
    vectors = clustered(700, 1)
    one, other, cosine = nearest_pairs(vectors, 300)
    products = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    expected = np.sort(products[np.triu_indices(700, 1)])[::-1][:300]
    np.testing.assert_allclose(cosine, expected, atol=1e-6)
    np.testing.assert_allclose(cosine, products[one, other], atol=1e-6)
    assert (one < other).all()


def test_an_exponential_tail_is_found_again():
    rng = np.random.default_rng(0)
    values = rng.exponential(0.5, 20_000)
    found = survival(values, np.ones(len(values)), np.array([0.0, 1.0, 4.0]))
    np.testing.assert_allclose(found, np.exp(-np.array([0.0, 1.0, 4.0]) / 0.5), rtol=0.15)


@pytest.fixture(scope="module")
def truth():
    """Return the thresholds that a share of images reaches in a pool of 20,000, counted."""
    pool = clustered(20_000, 1)
    _, _, cosine = nearest_pairs(pool, 100_000)

    def rate(threshold: float, size: int) -> float:
        pairs = (cosine >= np.float32(threshold)).sum()
        return 1 - np.exp(-2 * pairs / len(pool) * (size - 1) / (len(pool) - 1))

    def threshold(share: float, size: int) -> float:
        pairs = -np.log1p(-share) * len(pool) / 2 * (len(pool) - 1) / (size - 1)
        return float(cosine[round(pairs) - 1])

    return rate, threshold


SIZES = (2_000, 3_000, 5_000, 8_000, 12_000, 20_000, 30_000, 40_000, 60_000, 100_000)


@pytest.mark.parametrize("size", SIZES)
def test_the_share_at_ten_sizes_is_that_of_brute_force_within_a_factor_of_two(truth, size):
    """A sample of 2,000 tells of up to 50 times as many; so do 8 samples on average."""
    rate, threshold = truth
    cut = threshold(0.01, size)
    samples = [different(clustered(2_000, 100 + at)) for at in range(8)]
    shares = [
        false_shares(one, size, np.array([max(cut, one.lowest)]), draw_bootstrap(one, 0))
        for one in samples
    ]
    mean = np.mean([share.estimate[0] for share in shares])
    assert rate(cut, size) / 2 <= mean <= rate(cut, size) * 2


def test_the_interval_holds_the_truth_in_most_samples(truth):
    rate, threshold = truth
    held = []
    for size in (2_000, 20_000):
        cut = threshold(0.01, size)
        for at in range(20):
            looked = different(clustered(1_000, 200 + at))
            share = false_shares(
                looked, size, np.array([max(cut, looked.lowest)]), draw_bootstrap(looked, 0)
            )
            low, high = share.quantile(0.1)[0], share.quantile(0.9)[0]
            held.append(low <= rate(cut, size) <= high)
    assert np.mean(held) >= 0.7


def test_a_crawl_that_is_sampled_whole_is_counted():
    looked = with_copies(1_000, 0, 1)
    cuts = looked.cosine[[0, 4, 20]].astype(np.float64)
    share = false_shares(looked, 1_000, cuts, draw_bootstrap(looked, 0))
    np.testing.assert_allclose(share.estimate, 1 - np.exp(-np.array([2, 10, 42]) / 1_000))
    np.testing.assert_allclose(share.replicates, np.tile(share.estimate, (300, 1)))


def test_the_share_of_images_with_a_copy_grows_with_the_crawl():
    """1,000 of 10,000 have one copy each; a sample of a fifth sees one in five of these pairs."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(20):
        rows = np.sort(rng.choice(10_000, 2_000, replace=False))
        place = np.full(10_000, -1)
        place[rows] = np.arange(2_000)
        one, other = place[:500], place[5_000:5_500]
        both = (one >= 0) & (other >= 0)
        count = int(both.sum())
        cosine, ones = np.full(count, 0.95, np.float32), np.ones(count)
        verdicts = ones > 0, ones < 0
        looked = LookedPairs(2_000, one[both], other[both], cosine, ones, *verdicts, 0.5, count)
        found.append(true_shares(looked, 10_000, np.array([0.9]), draw_bootstrap(looked, 0)))
    assert np.mean([share.estimate[0] for share in found]) == pytest.approx(0.1, rel=0.15)


def test_the_threshold_keeps_its_precision_and_is_the_lowest():
    looked = with_copies(1_000, 100, 0.999)
    found = calibrate_dedup(alone(looked), 1_000, 0.99, edited(0.9995), NAMES, PHOTOGRAPHS)
    others = looked.cosine[~looked.same]
    # 200 images have a copy: at most 2 may have a false one, which is one pair.
    assert (others >= np.float32(found.threshold)).sum() <= 1
    assert (others >= np.float32(found.threshold - 0.003)).sum() >= 1
    assert found.separates
    assert (found.recall, found.recall_by_edit) == (1, {"a": 1, "b": 1})
    assert found == calibrate_dedup(alone(looked), 1_000, 0.99, edited(0.9995), NAMES, PHOTOGRAPHS)


def test_the_threshold_rises_with_the_precision_and_the_size_of_the_crawl():
    looked = with_copies(1_000, 100, 0.9999)
    by_precision = [
        calibrate_dedup(alone(looked), 1_000, precision, edited(1), NAMES, PHOTOGRAPHS).threshold
        for precision in (0.5, 0.9, 0.99, 0.999)
    ]
    assert by_precision == sorted(by_precision)
    assert by_precision[0] < by_precision[-1]
    by_size = [
        calibrate_dedup(alone(looked), size, 0.9, edited(1), NAMES, PHOTOGRAPHS)
        for size in (1_000, 10_000, 100_000)
    ]
    assert [each.threshold for each in by_size] == sorted({each.threshold for each in by_size})
    assert all(each.at_least <= each.threshold for each in by_size)


def test_an_embedder_that_tells_nothing_is_recognised_and_keeps_exact_copies():
    looked = different(unit(np.ones(16) + 1e-5 * np.random.default_rng(0).normal(size=(60, 16))))
    found = calibrate_dedup(alone(looked), 10**6, 0.99, edited(0.9999), NAMES, PHOTOGRAPHS)
    assert not found.separates
    assert found.threshold == 1
    assert "no threshold keeps precision 0.99" in found.render()
    assert found.precision is None


@pytest.mark.parametrize("filled", [0, 10**6])
def test_copies_among_the_neighbours_are_told_apart_and_thinned(monkeypatch, filled):
    """Of 400 pairs of copies in front, most are passed over, and what is looked at stands for all."""
    monkeypatch.setattr(near_pairs, "_CHUNK", 20)
    monkeypatch.setattr(near_pairs, "UNTHINNED", 60)
    monkeypatch.setattr(near_pairs, "FILLED", filled)
    rng = np.random.default_rng(0)
    pictures = unit(rng.normal(size=(400, 32)))
    vectors = np.concatenate([pictures, unit(pictures + 1e-3 * rng.normal(size=(400, 32)))])
    grids = rng.integers(0, 255, (400, 32, 32), dtype=np.uint8)
    asked = []

    def look_up(row: int) -> np.ndarray:
        asked.append(row)
        return grids[row % 400]

    photographs = np.zeros(800, bool)
    looked = look_at_nearest(vectors, photographs, look_up, told_apart, enough=50).others
    copies = looked.one % 400 == looked.other % 400
    np.testing.assert_array_equal(looked.same, copies)
    assert copies.sum() == 400 if filled else copies.sum() < 200
    assert looked.weight[copies].sum() == pytest.approx(400, rel=0.1)
    assert len(asked) == len(set(asked))


def test_what_was_passed_over_is_looked_at_where_it_decides(monkeypatch):
    """One in 40 pairs shows different pictures, too few for every eighth pair to tell how many."""
    monkeypatch.setattr(near_pairs, "_CHUNK", 20)
    monkeypatch.setattr(near_pairs, "UNTHINNED", 60)
    count = 600
    rng = np.random.default_rng(1)
    pictures = unit(rng.normal(size=(count, 64)))
    vectors = np.concatenate([pictures, unit(pictures + 1e-3 * rng.normal(size=(count, 64)))])
    rows = np.arange(count)
    lone = rows % 40 == 7
    grids = rng.integers(0, 255, (2 * count, 32, 32), dtype=np.uint8)
    grids[count:][~lone] = grids[:count][~lone]
    photographs = np.zeros(2 * count, bool)
    seen = look_at_nearest(vectors, photographs, lambda row: grids[row], lambda *_: "other").others
    near = seen.cosine > 0.99
    assert seen.weight[near & ~seen.same].sum() == lone.sum()
    assert seen.weight[near].sum() == count


def test_two_edits_that_thumbnails_part_are_joined_by_a_third_image():
    vectors = unit(np.array([[1, 0.3, 0, 0], [1, -0.3, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0.0]]))
    grids = np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8)
    half = np.arange(32) < 16
    third = np.where(half, grids[0], grids[1])  # of either it shows a half

    def judged(drawn: bool) -> bool:
        of = np.full(4, drawn)
        thumbnails = [grids[0], grids[1], third.astype(np.uint8), grids[2]]
        looked = look_at_nearest(vectors, of, lambda row: thumbnails[row], lambda *_: "other")
        pairs = looked.drawn if drawn else looked.others
        [at] = np.flatnonzero((pairs.one == 0) & (pairs.other == 1))
        return bool(pairs.same[at])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second_look, "judge_thumbnails", _shows_a_half_of)
        assert judged(False)
        assert not judged(True)


def _shows_a_half_of(one: np.ndarray, other: np.ndarray, are_drawn: bool = False) -> str:
    return "same" if (one == other).mean() > 0.4 else "other"


def test_drawn_pictures_have_a_threshold_of_their_own():
    """Charts of one template decide about charts, not about photographs; few pairs decide about none."""
    looked = with_copies(1_000, 100, 0.9999)
    highest = looked.cosine[~looked.same][0]
    charts = different(unit(np.ones(16) + 0.02 * np.random.default_rng(0).normal(size=(1_000, 16))))
    assert charts.cosine[-1] > highest
    both = Looked(looked, charts, 200)
    found = calibrate_dedup(both, 1_000, 0.99, edited(0.9995), NAMES, PHOTOGRAPHS)
    alike = calibrate_dedup(alone(looked), 1_000, 0.99, edited(0.9995), NAMES, PHOTOGRAPHS)
    assert found.threshold == pytest.approx(alike.threshold, abs=0.01)
    assert found.drawn_threshold > found.threshold
    assert alike.drawn_threshold == alike.threshold
    assert f", of two drawn pictures {found.drawn_threshold}" in found.render()
    drawn_edits = calibrate_dedup(both, 1_000, 0.99, edited(found.threshold), NAMES, ~PHOTOGRAPHS)
    assert (found.recall, drawn_edits.recall) == (1, 0)
    only_charts = Looked(none_of(1_000), charts, 1_000)
    apart = calibrate_dedup(only_charts, 1_000, 0.99, edited(1), NAMES, ~PHOTOGRAPHS)
    assert apart.threshold == apart.drawn_threshold


def test_pairs_too_few_to_decide_count_in_what_is_stated():
    """What a kind without a threshold of its own holds is counted, and nothing below its looks is a copy."""
    looked = with_copies(1_000, 100, 0.9999)
    without = calibrate_dedup(alone(looked), 1_000, 0.99, edited(1), NAMES, PHOTOGRAPHS)
    two, three = (
        replace(
            none_of(1_000),
            one=np.arange(count),
            other=np.arange(count) + 500,
            cosine=np.full(count, 0.99999, np.float32),
            weight=np.ones(count),
            same=np.zeros(count, bool),
            unsure=np.zeros(count, bool),
            lowest=0.2,
        )
        for count in (2, 3)
    )
    stated = [
        calibrate_dedup(Looked(looked, pairs, 50), size, 0.99, edited(1), NAMES, PHOTOGRAPHS)
        for pairs, size in ((two, 1_000), (three, 1_000), (three, 2_000))
    ]
    assert {each.threshold for each in stated[:2]} == {without.threshold}
    assert {each.drawn_threshold for each in stated[:2]} == {without.threshold}
    added = [each.false_per_thousand[0] - without.false_per_thousand[0] for each in stated[:2]]
    assert added == pytest.approx([4, 6], rel=0.01)  # both images of each pair
    larger = calibrate_dedup(alone(looked), 2_000, 0.99, edited(1), NAMES, PHOTOGRAPHS)
    assert stated[2].false_per_thousand[0] - larger.false_per_thousand[0] == pytest.approx(
        2 * 6, rel=0.02
    )
    assert without.precision is not None
    assert stated[1].precision is not None
    assert stated[1].precision[0] < without.precision[0]
    unseen = replace(three, lowest=0.99998)
    kept_apart = calibrate_dedup(
        Looked(looked, unseen, 50), 1_000, 0.99, edited(1), NAMES, PHOTOGRAPHS
    )
    assert kept_apart.drawn_threshold == 0.99998
    assert kept_apart.threshold < 0.99998


def test_what_cannot_be_read_is_left_out():
    photographs = np.zeros(50, bool)
    looked = look_at_nearest(clustered(50, 0), photographs, lambda row: None, told_apart).others
    assert len(looked.one) == 0
    with pytest.raises(LvdError, match=r"dedup\.threshold"):
        calibrate_dedup(alone(looked), 50, 0.99, edited(1), NAMES, PHOTOGRAPHS)


def test_a_calibration_prints_within_100_columns_and_is_json():
    looked = with_copies(1_000, 100, 0.999)
    found = calibrate_dedup(alone(looked), 30_000, 0.9, edited(0.9995), NAMES, PHOTOGRAPHS)
    text = found.render()
    assert max(map(len, text.splitlines())) <= 100
    assert f"dedup threshold {found.threshold}" in text
    assert "expected among 30,000 images, by 1,000 of them" in text
    assert "by edit: a 100%, b 100%" in text
    assert DedupCalibration.restored(json.loads(json.dumps(found.to_dict()))) == found
    low, middle, high = (found.false_per_thousand[at] for at in (1, 0, 2))
    assert low <= middle <= high


def test_depth_is_finite_at_one():
    assert np.isfinite(depth(np.array([1.0, -1.0]))).all()
