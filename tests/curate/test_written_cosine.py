"""What is told of cosines and thresholds holds by the digits that are shown."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curate.written_cosine import rounded_down, rounded_up

COSINES = st.floats(-1, 1, width=32)


def test_a_similarity_is_not_shown_as_a_threshold_that_it_does_not_reach():
    shown = [
        rounded_down(float(np.float32(n))) for n in (0.83577, 0.8358, 0.9, 0.99996, 1.0, -0.02)
    ]
    assert shown == ["0.8357", "0.8358", "0.9000", "0.9999", "1.0000", "-0.0200"]


def test_a_threshold_of_four_digits_is_shown_as_it_was_given():
    assert [rounded_up(n) for n in (0.796, 0.5, float(np.float32(0.9237)))] == [
        "0.7960",
        "0.5000",
        "0.9237",
    ]
    assert rounded_up(0.79604) == "0.7961"


@given(COSINES, COSINES)
def test_what_is_below_reads_as_below_and_what_reaches_as_reaching(one, other):
    less, more = sorted((one, other))
    assert float(rounded_down(less)) <= float(rounded_down(more))
    if more - less > 2e-7:
        assert float(rounded_down(less)) < float(rounded_up(more))
