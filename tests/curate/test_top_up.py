"""Each candidate that is picked is the farthest of all from what is held, ties by row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import clumps, exact_cosines

from curate import top_up
from curate.selection import k_centre


def greedy(held, candidates, count):
    """Pick by the definition, in float64, everything compared with everything each time."""
    picked: list[int] = []
    known = np.concatenate([held, candidates[:0]])
    usable = [row for row in range(len(candidates)) if candidates[row].any()]
    for _ in range(min(count, len(usable))):
        left = [row for row in usable if row not in picked]
        best = np.full(len(left), -2.0)
        if len(known):
            best = np.round(exact_cosines(candidates[left], known).max(1), 6)
        picked.append(left[int(np.argmin(best))])
        known = np.concatenate([known, candidates[picked[-1:]]])
    return picked


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(k_centre, "ROWS", 7)


@pytest.mark.parametrize("size", [0, 1, 12])
def test_picks_are_those_of_the_definition(size):
    vectors = clumps(0, 12, 8, 6, 0.5).astype(np.float16)
    rng = np.random.default_rng(0)
    held = rng.permutation(vectors)[:size]
    found = top_up(held, vectors, 40)
    assert found.rows.tolist() == greedy(held, vectors, 40)
    known = np.concatenate([held, vectors[found.rows]])
    for place, cosine in enumerate(found.similarity.tolist()):
        if not size and not place:
            assert np.isnan(cosine)
            continue
        before = exact_cosines(vectors[found.rows[place : place + 1]], known[: size + place])
        assert cosine == pytest.approx(before.max(), abs=1e-6)
    assert (np.diff(found.similarity[1:]) >= -1e-6).all()


CORNERS = st.sampled_from(  # whose norms, and so their cosines, are exact
    [
        (0, 0, 0, 0),
        (1, 0, 0, 0),
        (0, 0, 2, 0),
        (0, -1, 0, 0),
        (1, 1, 1, 1),
        (1, -1, 1, 1),
        (-1, 1, 1, -1),
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(CORNERS, max_size=4), st.lists(CORNERS, min_size=1, max_size=25), st.integers(1, 30)
)
def test_ties_go_to_the_first_row_and_zeros_are_never_picked(held, candidates, count):
    held_, made = np.array(held, float).reshape(-1, 4), np.array(candidates, float)
    found = top_up(held_, made, count)
    assert found.rows.tolist() == greedy(held_[held_.any(1)], made, count)


def test_what_is_picked_reaches_every_clump_and_blocks_change_nothing(monkeypatch):
    vectors = clumps(1, 20, 15, 32, 0.1)
    picked = top_up(vectors[:15], vectors, 19).rows
    assert sorted(picked // 15) == list(range(1, 20))
    monkeypatch.setattr(k_centre, "ROWS", 1_000)
    assert (top_up(vectors[:15], vectors, 19).rows == picked).all()
