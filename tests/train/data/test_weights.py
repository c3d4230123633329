"""Samples of a weight: how often each stands in an epoch, against arithmetic in fractions."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import LvdError
from train.data.order import UNIT, Order
from train.seeds import derive


@dataclass
class Given:
    """Weights as a list of them for each part."""

    parts: list[list[float]]

    @property
    def totals(self):
        return np.array([self.of_part(part).sum() for part in range(len(self.parts))], np.int64)

    def of_part(self, part):
        return np.rint(np.array(self.parts[part], np.float64) * UNIT).astype(np.int64)


def fills(parts, batch_size):
    """Tell whether the weights, in whole numbers of `1 / UNIT`, fill a batch."""
    return sum(round(weight * UNIT) for part in parts for weight in part) >= batch_size * UNIT


weights = st.lists(
    st.lists(st.sampled_from([0, 0.25, 1 / 3, 1, 1.5, 2, 3.7]), max_size=6), min_size=1, max_size=6
).filter(lambda parts: fills(parts, 1))


def order(parts, *, batch_size=1, window=2, seed=0):
    sizes = [len(part) for part in parts]
    return Order(sizes, batch_size=batch_size, window=window, seed=seed, weights=Given(parts))


@given(weights, st.integers(0, 3), st.integers(0, 50))
def test_a_weight_is_met_by_its_floor_or_one_more_where_the_line_says(parts, seed, epoch):
    found = Counter(order(parts, seed=seed).epoch(epoch).tolist())
    offset = Fraction(derive(seed, "weights", epoch) % UNIT, UNIT)
    line, expected = offset, {}
    for sample, weight in enumerate(weight for part in parts for weight in part):
        before, line = line, line + Fraction(round(weight * UNIT), UNIT)
        expected[sample] = sum(before < point <= line for point in range(1, int(line) + 1))
        assert expected[sample] in (int(weight), int(weight) + 1)
    assert found == Counter(expected)


def test_over_many_epochs_each_sample_comes_as_often_as_its_weight():
    parts = [[0.25, 1.5, 2], [], [1 / 3, 0.1, 1, 0]]
    counted = order(parts, seed=5)
    epochs = 2000
    found = Counter()
    for epoch in range(epochs):
        found.update(counted.epoch(epoch).tolist())
    for sample, weight in enumerate(weight for part in parts for weight in part):
        share = weight % 1
        error = 4 * np.sqrt(share * (1 - share) / epochs)
        assert abs(found[sample] / epochs - weight) <= error, sample


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(sum), st.integers(1, 4))
def test_samples_of_weight_one_come_in_the_order_of_samples_without_weights(sizes, window):
    ones = order([[1] * size for size in sizes], window=window)
    plain = Order(sizes, batch_size=1, window=window, seed=0)
    for epoch in range(3):
        assert ones.epoch(epoch).tolist() == plain.epoch(epoch).tolist()


@given(weights, st.integers(1, 3))
def test_no_sample_and_turn_come_twice(parts, batch_size):
    if not fills(parts, batch_size):
        return
    drawn = order(parts, batch_size=batch_size)
    seen = set()
    for step in range(3 * drawn.batches_per_epoch):
        _, samples, turns = drawn.batch(step)
        seen |= set(zip(samples.tolist(), turns.tolist(), strict=True))
    assert len(seen) == 3 * drawn.batches_per_epoch * batch_size


# pitfall 21
@given(weights, st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_a_batch_of_weighted_samples_depends_on_its_step_alone(parts, steps):
    asked = order(parts)
    for step in steps:
        fresh = pickle.loads(pickle.dumps(order(parts))).batch(step)
        assert all(map(np.array_equal, fresh, asked.batch(step)))


@given(weights, st.integers(0, 40), st.integers(0, 40))
def test_places_are_taken_across_the_ends_of_epochs(parts, start, count):
    taken = order(parts).take(start, start + count)
    whole = order(parts)
    epochs = range((start + count) // whole.images + 1)
    expected = np.concatenate([whole.epoch(epoch)[: whole.images] for epoch in epochs])
    assert taken.samples.tolist() == expected[start : start + count].tolist()


def test_weights_that_do_not_fill_a_batch_are_refused_in_one_line():
    with pytest.raises(LvdError, match=r"^2 images are fewer than one batch of 3: [^\n]*$"):
        order([[0.5] * 5], batch_size=3)
