"""Candidates by bfloat16 lose nothing: what is found is what float32 finds, to the last bit."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import clumps, exact_cosines

from curate.neighbours import coarse, cpu, search
from curate.neighbours.coarse import CoarseIndex
from curate.neighbours.search import cosine, first_k, top_k, unit

SIZES = st.fixed_dictionaries(
    {
        "WIDTH": st.sampled_from([32, 64, 256]),
        "GROUP": st.sampled_from([2, 8, 32]),
        "PRODUCTS": st.integers(1, 20_000),
        "FEWEST_ROWS": st.integers(1, 40),
        "CROWDED": st.integers(0, 80),
    }
)


def compared(queries, base, k, sizes):
    """Return what the search by candidates finds, and what brute force with the same cosines does."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(coarse, name, value)
        patch.setattr(search, "pays", lambda *_: True)
        found = top_k(queries, base, k)
    asked, there = unit(queries), unit(base)
    every = [cosine(np.tile(one, (len(there), 1)), there) for one in asked]
    rows = np.tile(np.arange(len(there)), (len(asked), 1))
    return found, first_k(np.array(every), rows, k)


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 6), st.sampled_from([0.02, 0.5]), SIZES)
def test_the_nearest_are_those_of_brute_force_to_the_last_bit(seed, k, spread, sizes):
    rng = np.random.default_rng(seed)
    base = clumps(seed, 75, 4, 24, spread).astype(np.float16)
    base[rng.integers(0, 300, 9)] = 0
    base[rng.integers(0, 300, 9)] *= -1
    base[:20] = base[rng.integers(0, 300, 20)]
    queries = np.concatenate([base[::9], clumps(seed + 1, 6, 5, 24, spread).astype(np.float16)])
    assert_equal(*compared(queries, base, k, sizes))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20), SIZES)
def test_vectors_that_bfloat16_does_not_tell_apart_are_told_apart(seed, sizes):
    rng = np.random.default_rng(seed)
    one = rng.standard_normal(48).astype(np.float16)
    base = np.tile(one, (320, 1))
    where = rng.integers(0, 48, 320), rng.integers(-2, 3, 320)
    base.view(np.uint16)[np.arange(320), where[0]] += where[1].astype(np.uint16)
    rounded = CoarseIndex(unit(base), 1)._base[0, :320].float().numpy()
    assert len(np.unique(rounded, axis=0)) < len(np.unique(base, axis=0)) / 2
    assert_equal(*compared(base[:8], base, 5, sizes))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([5, 384]), st.floats(0, 6))
def test_the_nearest_are_proposed_whatever_the_coordinates(seed, dim, power):
    """A large power leaves a few coordinates with nearly all of a vector."""
    rng = np.random.default_rng(seed)
    raw = rng.standard_normal((240, dim))
    vectors = unit((np.sign(raw) * np.abs(raw) ** power).astype(np.float32))
    exact = exact_cosines(vectors, vectors)
    reached = exact >= np.sort(exact, axis=1)[:, -3:-2]
    index = CoarseIndex(vectors, 1)
    proposed, done = np.zeros((240, 240), bool), np.zeros(240, bool)
    for some in index.nearest(vectors, 3):
        proposed[some.queries, some.rows] = done[some.done] = True
        assert not done[some.crowded].any()
    assert not reached[done][~proposed[done]].any()


def test_scores_are_off_by_no_more_than_is_said():
    vectors = unit(clumps(3, 500, 4, 384, 0.4).astype(np.float32))
    index = CoarseIndex(vectors, 1)
    [(_, scores, _, error)] = list(index._scores(vectors[:100]))
    products = scores.float().numpy().transpose(1, 0, 2, 3).reshape(100, -1)[:, : len(vectors)]
    exact = exact_cosines(vectors[:100], vectors)
    off = np.abs(products - exact) - np.abs(products) * 2**-8
    assert (off <= error.numpy()[:, None]).all()
    assert error.max() < 0.01


def test_few_are_proposed_for_each_query():
    vectors = clumps(5, 1000, 4, 384, 0.4).astype(np.float16)
    [some] = list(CoarseIndex(unit(vectors), 1).nearest(unit(vectors[:100]), 8))
    assert len(some.crowded) == 0
    assert 8 <= len(some.rows) / 100 < 100


def test_of_more_equal_vectors_than_are_looked_at_the_first_are_found():
    base = np.tile(clumps(4, 1, 1, 12, 0.4).astype(np.float16), (9000, 1))
    index = CoarseIndex(unit(base), 1)
    [some] = list(index.nearest(unit(base[:3]), 4))
    assert (len(some.rows), some.crowded.tolist()) == (0, [0, 1, 2])
    found, expected = compared(base[:3], base, 4, {})
    assert_equal(found, expected)
    assert found[1].tolist() == [[0, 1, 2, 3]] * 3


@pytest.fixture
def cpu_flags(monkeypatch, tmp_path):
    """Have the system say of the CPU what is given."""
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")

    def say(flags):
        cpu.multiplies_bfloat16.cache_clear()
        if flags is not None:
            (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t:\n")

    yield say
    cpu.multiplies_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("flags", "has"),
    [(None, False), ("avx2 avx512f", False), ("avx512_bf16 avx2", True), ("amx_bf16", True)],
)
def test_it_is_used_where_the_cpu_multiplies_bfloat16(cpu_flags, flags, has):
    cpu_flags(flags)
    assert cpu.pays(10**6, 10**5, 384, 8) is has


def test_it_is_used_for_much_work_only(cpu_flags, monkeypatch):
    cpu_flags("avx512_bf16")
    assert not cpu.pays(10**9, 1_000, 384, 1)
    assert not cpu.pays(10**9, 20_000, 384, 100)
    assert cpu.pays(1_000, 20_000, 384, 8)
    monkeypatch.delitem(sys.modules, "torch")
    assert not cpu.pays(1_000, 20_000, 384, 8)  # importing torch would take longer
    assert cpu.pays(10_000, 20_000, 384, 8)
