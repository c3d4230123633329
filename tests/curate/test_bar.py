"""Two drawn pictures are copies from a higher cosine on than others, however they are searched."""

import numpy as np
import pytest
from made_collection import clumps, clustered, exact_cosines, from_vectors, grouped, ranked

from curate.catalogue import drawn
from curate.catalogue.drawn import are_drawn
from curate.dedup.bar import DRAWN, Bar, mark_drawn
from curate.dedup.keep import RANK
from curate.dedup.near import DedupSettings, sanity
from curate.filters.luminance import BITS
from curate.neighbours.cluster import ClusterSettings

ALL = {"probes": 10**6, "max_pair_share": 1}
THRESHOLD, OF_DRAWN = 0.85, 0.95


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    work = tmp_path_factory.mktemp("pool")
    vectors = clumps(5, 12, 25, 12, 0.5)
    collection = from_vectors(work, vectors)
    marked = work / "marked"
    marked.mkdir()
    flags = np.random.default_rng(3).random(len(vectors)) < 0.5
    np.save(marked / DRAWN, flags)
    clusters, _ = clustered(collection, work, ClusterSettings(clusters=15), bucket=60)
    exact = exact_cosines(vectors, vectors)
    both = flags[:, None] & flags
    copies = exact >= np.where(both, np.float32(OF_DRAWN), np.float32(THRESHOLD))
    return work, collection, clusters, Bar(THRESHOLD, OF_DRAWN, marked), copies, both, exact


@pytest.mark.parametrize(
    "asked",
    [
        {"groups": "greedy"},
        {"groups": "greedy", "edges_per_image": 1},
        {"groups": "components"},
        {"groups": "components", "search": "pool", "neighbours": 10**6},
    ],
    ids=["greedy", "in passes", "components", "pool"],
)
def test_groups_are_those_of_brute_force(pool, asked):
    work, collection, clusters, bar, copies, both, exact = pool
    assert (both & (exact >= THRESHOLD) & (exact < OF_DRAWN)).any()
    settings = DedupSettings(**ALL, **asked)
    found, _ = grouped(collection, clusters, work, bar, settings)
    stands = np.load(found / "representative.npy")
    rank = np.load(ranked(collection, work, settings) / RANK)
    best_first = np.argsort(rank)
    expected = np.full(len(rank), -1)
    for place, number in enumerate(best_first):
        better = best_first[:place]
        if asked["groups"] == "greedy":
            own = [n for n in better if expected[n] == n and copies[number, n]]
        else:
            own = [expected[n] for n in better if copies[number, n]]
        if asked["groups"] == "components" and own:
            joined = np.isin(expected, own)
            expected[joined] = expected[number] = min(own, key=lambda n: rank[n])
        else:
            expected[number] = min(own, key=lambda n: rank[n]) if own else number
    np.testing.assert_array_equal(stands, expected)


def test_what_is_absurd_is_told_by_what_would_be_copies(pool, tmp_path):
    _, collection, _, bar, copies, _, _ = pool
    told = sanity(collection, bar, DedupSettings(max_pair_share=1), out=tmp_path)
    assert told["pairs"] == np.triu(copies, 1).sum()
    assert (
        told["pairs"]
        < sanity(
            collection, Bar(THRESHOLD, THRESHOLD), DedupSettings(max_pair_share=1), out=tmp_path
        )["pairs"]
    )


def test_what_nothing_is_known_of_is_not_drawn(pool, tmp_path, monkeypatch):
    _, collection, *_ = pool
    known = np.random.default_rng(0).uniform(0, 8, len(collection)).astype(np.float32)
    known[::7] = np.nan

    def facts(self, numbers, columns):
        import pyarrow as pa

        assert columns == [BITS]
        return pa.table({BITS: pa.array(known[numbers], from_pandas=True)})

    monkeypatch.setattr(type(collection), "facts", facts)
    expected = np.nan_to_num(known, nan=8) < drawn.LEAST
    np.testing.assert_array_equal(are_drawn(collection, np.arange(len(known))), expected)
    told = mark_drawn(collection, out=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / DRAWN), expected)
    assert told == {"drawn": expected.sum()}


def test_of_drawn_ones_less_is_not_asked_than_of_others():
    with pytest.raises(ValueError, match=r"drawn_threshold 0\.8 is below the threshold 0\.9"):
        DedupSettings(threshold=0.9, drawn_threshold=0.8)
    assert DedupSettings(threshold=0.9, drawn_threshold=0.9).drawn_threshold == 0.9
