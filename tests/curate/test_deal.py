"""A target is dealt exactly, and as evenly as the capacities allow."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curate.selection.deal import deal

CAPACITIES = st.lists(st.integers(0, 30), min_size=1, max_size=12)


def bisected(capacity, target):
    """Return m of sum(min(m, c)) = target as the paper finds it, exactly: by bisection, in fractions."""
    low, high = Fraction(0), Fraction(max(capacity))
    for _ in range(60):
        middle = (low + high) / 2
        if sum(min(middle, c) for c in capacity) <= target:
            low = middle
        else:
            high = middle
    return low


@given(CAPACITIES, st.integers(0, 400), st.integers(0, 5))
def test_a_target_is_dealt_to_the_last_one_and_evenly(capacity, target, seed):
    dealt = deal(np.array(capacity), target, np.random.default_rng(seed))
    assert dealt.sum() == min(target, sum(capacity))
    assert all(0 <= own <= most for own, most in zip(dealt, capacity, strict=True))
    if target < sum(capacity):
        level = bisected(capacity, target)
        for own, most in zip(dealt.tolist(), capacity, strict=True):
            assert abs(own - min(level, most)) < 1


@given(CAPACITIES, st.integers(0, 400))
def test_it_is_as_if_one_by_one_were_given_to_whoever_has_least(capacity, target):
    dealt = deal(np.array(capacity), target, np.random.default_rng(0))
    given_ = [0] * len(capacity)
    for _ in range(min(target, sum(capacity))):
        open_ = [row for row, most in enumerate(capacity) if given_[row] < most]
        given_[min(open_, key=given_.__getitem__)] += 1
    assert sorted(dealt.tolist()) == sorted(given_)


def test_what_is_left_goes_to_none_more_than_to_others():
    capacity = np.full(10, 7)
    got = sum(deal(capacity, 25, np.random.default_rng(seed)) for seed in range(400))
    np.testing.assert_allclose(got / 400, 2.5, atol=0.1)
