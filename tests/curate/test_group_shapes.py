"""The table of groups says how far their members are from one another."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import (
    Made,
    clear,
    clumps,
    clustered,
    exact_cosines,
    from_vectors,
    grouped,
    made_collection,
)
from test_groups import at_angle

from curate.dedup import members, shape
from curate.dedup.near import DedupSettings
from curate.report import groups as group_table


def told(collection, work, threshold, mode):
    """Return the rows of the table of groups, and who stands for whom."""
    clusters, _ = clustered(collection, work)
    chosen = DedupSettings(groups=mode, probes=10**6)
    found, _ = grouped(collection, clusters, work, threshold, chosen)
    listed = found.parent / "members"
    listed.mkdir()
    members.list_members(collection, found, out=listed)
    rows = []
    for first, last in members.ranges_of(listed):
        out = found.parent / f"shape-{first}"
        out.mkdir()
        counts = shape.measure_groups(collection, found, listed, first, last, threshold, out=out)
        group_table.table(collection, out, threshold, mode, out=out)
        mine = pq.read_table(out / "groups.parquet")
        assert mine.schema.equals(group_table.GROUPS)
        rows += mine.to_pylist()
        assert counts["groups"] == len(mine) == last - first
        assert counts["chains"] == sum(row["chain"] for row in mine.to_pylist())
    return rows, np.load(found / "representative.npy")


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**20), st.sampled_from(["greedy", "components"]), st.sampled_from([1, 7, 10**6])
)
def test_groups_are_measured_as_brute_force_does(tmp_path_factory, seed, mode, together):
    work = tmp_path_factory.mktemp("work")
    vectors = clumps(seed, 8, 10, 6, 0.5)
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, 0.93)
    collection = from_vectors(work, vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "TOGETHER", together)
        rows, stands = told(collection, work, threshold, mode)
    expected = {}
    for one in np.unique(stands).tolist():
        mine = np.flatnonzero(stands == one)
        if len(mine) > 1:
            expected[one] = mine
    keys = collection.keys(np.array(list(expected), np.int64))
    assert [row["representative"] for row in rows] == keys == sorted(keys)
    for row, (one, mine) in zip(rows, expected.items(), strict=True):
        lowest = exact[np.ix_(mine, mine)].min()
        assert (row["group"], row["size"], row["contents"]) == (one, len(mine), len(mine))
        assert row["diameter"] == pytest.approx(1 - lowest, abs=1e-6)
        assert row["lowest_similarity"] == pytest.approx(exact[mine, one].min(), abs=1e-6)
        assert row["chain"] == (lowest < threshold)
        assert (row["sampled"], row["method"]) == (False, mode)
    if mode == "greedy":
        assert all(row["lowest_similarity"] >= np.float32(threshold) for row in rows)


def test_a_chain_is_a_group_two_members_of_which_do_not_reach_the_threshold(tmp_path):
    images = [Made(f"p/{row}", each) for row, each in enumerate(at_angle(0, 15, 30, 90, 95))]
    [chain, pair], _ = told(made_collection(tmp_path, images), tmp_path, 0.95, "components")
    assert (chain["chain"], chain["size"]) == (True, 3)
    assert chain["diameter"] == pytest.approx(1 - np.cos(np.radians(30)), abs=1e-3)
    assert (pair["chain"], pair["size"]) == (False, 2)


def test_images_of_the_same_bytes_are_one_point(tmp_path):
    one, other = at_angle(0, 60)
    images = [Made(f"p/{row}", one, content="x") for row in range(3)] + [Made("p/9", other)]
    [row], _ = told(made_collection(tmp_path, images), tmp_path, 0.95, "greedy")
    assert (row["size"], row["contents"], row["method"]) == (3, 1, "exact")
    assert (row["diameter"], row["lowest_similarity"], row["chain"]) == (0, 1, False)


def test_a_large_group_is_sampled_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(shape, "SAMPLED", 20)
    vectors = at_angle(*np.linspace(0, 50, 60))
    collection = from_vectors(tmp_path, vectors)
    [row], stands = told(collection, tmp_path, 0.95, "components")
    exact = exact_cosines(vectors, vectors)
    lowest = exact[0, stands[0]], exact[-1, stands[0]]
    assert (row["sampled"], row["size"], row["chain"]) == (True, 60, True)
    assert row["lowest_similarity"] == pytest.approx(min(lowest), abs=1e-6)
    assert 0.8 * (1 - exact.min()) < row["diameter"] <= 1 - exact.min() + 1e-6


def test_a_crawl_without_groups_has_no_unit(tmp_path):
    rows, _ = told(from_vectors(tmp_path, np.eye(4)), tmp_path, 0.9, "greedy")
    assert rows == []
