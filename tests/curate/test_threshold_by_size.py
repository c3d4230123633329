"""The dedup threshold in crawls of many sizes, against all their pairs, counted by brute force."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from looked_pairs import alone

from curate.calibration import second_look
from curate.calibration.dedup_threshold import (
    DedupCalibration,
    UnmeasurableError,
    calibrate_dedup,
)
from curate.calibration.near_pairs import LookedPairs, look_at_nearest
from curate.calibration.tail import (
    NEAR,
    draw_bootstrap,
    false_shares,
    odds_of_other,
    true_shares,
)
from curate.neighbours.search import unit

SIZES = (300, 500, 700, 1_000, 1_300, 1_700, 2_200, 2_700, 3_300, 4_000)
PRECISION = 0.99
STEP = 0.0002
"""Of the thresholds' last digit, twice."""


@dataclass(frozen=True)
class Crawl:
    """Images of pictures, some of them copies, and all pairs of images that are not far apart."""

    vectors: np.ndarray
    picture: np.ndarray
    one: np.ndarray
    other: np.ndarray
    cosine: np.ndarray

    @property
    def same(self) -> np.ndarray:
        return self.picture[self.one] == self.picture[self.other]

    def count(self, wanted: np.ndarray, threshold: float) -> int:
        """Return how many images have one of the wanted pairs at a threshold."""
        reaching = wanted & (self.cosine >= np.float32(threshold))
        return len(np.unique([self.one[reaching], self.other[reaching]]))

    def keeps(self, threshold: float) -> bool:
        """Tell whether few enough images have a false copy, by the pairs that they are part of."""
        false = 2 * (~self.same & (self.cosine >= np.float32(threshold))).sum()
        share = 1 - np.exp(-false / len(self.vectors))
        true = self.count(self.same, threshold) / len(self.vectors)
        return bool(share <= (1 - PRECISION) * true)


def make_crawl(size: int, seed: int, copies: float = 0.1) -> Crawl:
    """Return a crawl in which a share of images are copies, near ones and far ones."""
    rng = np.random.default_rng(seed)
    kinds = np.random.default_rng(7).normal(size=(100, 24))
    count = round(size * (1 - copies))
    pictures = unit(kinds[rng.integers(0, 100, count)] + rng.normal(size=(count, 24)))
    of = rng.choice(count, size - count, replace=False)
    far = rng.uniform(0.02, 0.15, (len(of), 1))
    edited = unit(pictures[of] + far * rng.normal(size=(len(of), 24)))
    vectors = np.concatenate([pictures, edited])
    products = vectors @ vectors.T
    one, other = np.nonzero(np.triu(products >= 0.7, 1))
    return Crawl(vectors, np.concatenate([np.arange(count), of]), one, other, products[one, other])


def look(monkeypatch, vectors: np.ndarray, picture: np.ndarray, clear: float = 0.97):
    """Return the looked pairs, where thumbnails leave a few unsure that a finer look tells apart."""

    def judge(one: np.ndarray, other: np.ndarray) -> str:
        one, other = (int.from_bytes(each.tobytes()) for each in (one, other))
        if (7 * one + other) % 1000 >= 1000 * clear:
            return "unsure"
        return "same" if picture[one] == picture[other] else "other"

    def look_finer(one: int, other: int) -> str:
        return "same" if picture[one] == picture[other] else "other"

    monkeypatch.setattr(second_look, "judge_thumbnails", judge)
    photographs = np.zeros(len(vectors), bool)
    return look_at_nearest(vectors, photographs, thumbnail, look_finer).others


def thumbnail(row: int) -> np.ndarray:
    """Return one whose bytes are the number of the row."""
    return np.frombuffer(row.to_bytes(32 * 32), np.uint8).reshape(32, 32)


def calibrate(looked: LookedPairs, size: int) -> DedupCalibration:
    of_edits = np.ones((50, 1), np.float32), ("a",), np.zeros(50, bool)
    return calibrate_dedup(alone(looked), size, PRECISION, *of_edits)


@pytest.mark.parametrize("size", SIZES)
def test_the_threshold_of_a_crawl_that_is_seen_whole_is_the_lowest_that_is_right(monkeypatch, size):
    """What is stated is what all pairs say: nothing is thinned, and nothing called what it is not."""
    crawl = make_crawl(size, size)
    found = calibrate(look(monkeypatch, crawl.vectors, crawl.picture), size)
    false, true = (crawl.count(pairs, found.threshold) for pairs in (~crawl.same, crawl.same))
    assert false <= (1 - PRECISION) * true
    pairs = (~crawl.same & (crawl.cosine >= np.float32(found.threshold))).sum()
    stated = 1000 * (1 - np.exp(-2 * pairs / size))
    np.testing.assert_allclose(found.false_per_thousand, [stated] * 3)
    wrong = -np.sort(-crawl.cosine[~crawl.same])
    highest = next(float(cosine) for cosine in wrong if not crawl.keeps(cosine))
    assert highest < found.threshold <= highest + STEP


def test_the_threshold_of_a_sampled_crawl_is_right_at_most_sizes(monkeypatch):
    """A sample of 400 says what to expect of ten times as many, whichever images it holds."""
    right, thresholds = [], []
    for size in SIZES[1:]:
        crawl = make_crawl(size, size)
        rows = np.sort(np.random.default_rng(0).choice(size, min(size, 400), replace=False))
        looked = look(monkeypatch, crawl.vectors[rows], crawl.picture[rows])
        found = calibrate(looked, size)
        right.append(crawl.keeps(found.threshold))
        thresholds.append(found.threshold)
    assert np.mean(right) >= 0.8
    assert max(thresholds) < 1


def test_the_interval_holds_what_was_passed_over():
    """Of every fourth pair alone it is known how many more there are, as often as is said."""
    held = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        different = rng.random(1_000) < 0.05
        looked_at = np.arange(rng.integers(4), 1_000, 4)
        looked = made_pairs(~different[looked_at], weight=4.0)
        share = false_shares(looked, looked.images, np.array([0.5]), draw_bootstrap(looked, 0))
        true = 1 - np.exp(-2 * different.sum() / looked.images)
        held.append(share.quantile(0.1)[0] <= true <= share.quantile(0.9)[0])
        assert share.quantile(0.1)[0] < share.estimate[0] < share.quantile(0.9)[0]
    assert np.mean(held) >= 0.65


def test_pairs_that_nobody_is_sure_of_count_half_and_widen_the_interval():
    looked = made_pairs(np.zeros(8, bool), unsure=np.ones(8, bool))
    share = false_shares(looked, looked.images, np.array([0.5]), draw_bootstrap(looked, 0))
    shares = 1 - np.exp(-2 * np.arange(9) / looked.images)
    assert share.estimate[0] == pytest.approx(shares[4])
    assert set(share.replicates[:, 0].round(12)) <= set(shares.round(12))
    assert share.quantile(0.1)[0] <= shares[3] < shares[5] <= share.quantile(0.9)[0]


def test_an_undecided_pair_counts_as_those_beside_it_that_are_decided():
    rng = np.random.default_rng(0)
    looked = made_pairs(rng.random(200) < 0.5, 2.0, rng.random(200) < 0.2)
    odds = odds_of_other(replace(looked, same=looked.same & ~looked.unsure))
    for place, is_unsure in enumerate(looked.unsure):
        sure = [n for n in range(200) if not looked.unsure[n]]
        near = [n for n in sure if n < place][-NEAR:] + [n for n in sure if n > place][:NEAR]
        different = sum(not looked.same[n] for n in near)
        expected = (
            (2 * different + 0.5) / (2 * len(near) + 1)
            if is_unsure
            else float(not looked.same[place])
        )
        assert odds[place] == pytest.approx(expected)


def test_one_undecided_pair_among_copies_does_not_move_the_threshold_and_one_among_others_does():
    same = np.arange(100) < 60
    looked = replace(made_pairs(same), cosine=np.linspace(0.99, 0.5, 100, dtype=np.float32))
    found = {None: calibrate(looked, looked.images).threshold}
    for place in (10, 59):
        at = np.arange(100) == place
        undecided = replace(looked, same=same & ~at, unsure=at)
        found[place] = calibrate(undecided, looked.images).threshold
    assert looked.cosine[60] < found[None] == found[10] <= looked.cosine[59]
    known = replace(looked, same=same & (np.arange(100) != 59))
    assert found[59] == calibrate(known, looked.images).threshold > looked.cosine[59]


def test_undecided_pairs_among_copies_are_no_pairs_of_different_pictures_to_measure_by():
    place = np.arange(200)
    unsure = np.isin(place, (20, 60, 100, 140, 180))
    cosine = np.linspace(0.999, 0.6, 200, dtype=np.float32)
    looked = replace(made_pairs(~unsure, unsure=unsure), cosine=cosine)
    with pytest.raises(UnmeasurableError, match="0 pairs of different pictures and needs 5"):
        calibrate(looked, 1_000 * looked.images)


def test_images_with_a_copy_are_known_where_all_are_seen():
    looked = made_pairs(np.ones(100, bool))
    bootstrap = draw_bootstrap(looked, 0)
    whole = true_shares(looked, looked.images, np.array([0.5]), bootstrap)
    np.testing.assert_allclose(whole.replicates, 200 / looked.images)
    most, half = (
        true_shares(looked, round(times * looked.images), np.array([0.5]), bootstrap)
        for times in (1.2, 2)
    )
    assert 0 < most.replicates.std() / most.estimate[0] < half.replicates.std() / half.estimate[0]


def made_pairs(
    same: np.ndarray, weight: float = 1.0, unsure: np.ndarray | None = None
) -> LookedPairs:
    """Return pairs of one cosine, no two of one image, in a sample of five images a pair."""
    count = len(same)
    return LookedPairs(
        images=5 * count,
        one=np.arange(count),
        other=np.arange(count) + count,
        cosine=np.full(count, 0.9, np.float32),
        weight=np.full(count, weight),
        same=same,
        unsure=np.zeros(count, bool) if unsure is None else unsure,
        lowest=0.5,
        looks=count,
    )
