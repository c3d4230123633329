"""Heaps of near-identical images: grouped as without leaders, with pairs in proportion to images."""

import numpy as np
import pytest
from made_collection import clumps, from_vectors

from curate.catalogue.collection import Catalogued
from curate.dedup import bar, leaders, near
from curate.dedup.bar import Bar
from curate.dedup.near import DedupSettings
from curate.dedup.stage import dedup
from curate.execution.session import open_runner
from curate.neighbours.cluster import ClusterSettings, cluster
from curate.stage import EngineSettings


def groups_of(work, vectors, few, patch, threshold=0.9, **settings):
    """Return who stands for every image, with leaders from `few` contents on."""
    patch.setattr(leaders, "FEWEST", few)
    patch.setattr(leaders, "LEAST", 8)
    crawl = Catalogued("crawl", [], from_vectors(work, vectors), "0" * 16)
    asked = DedupSettings(probes=10**6, max_pair_share=1, edges_per_image=9, looks=0, **settings)
    with open_runner(work, EngineSettings(), "inline") as runner:
        clustered = cluster(runner, crawl, ClusterSettings(), 1, None)
        found = dedup(runner, crawl, clustered, Bar(threshold, threshold), asked, 10**8, 1)
    return np.load(found.groups / "representative.npy")


def placeholders(count):
    """Return near-identical vectors [count, 16], and as many that are not."""
    rng = np.random.default_rng(count)
    one = np.eye(1, 16) + 0.02 * rng.standard_normal((count, 16))
    return np.concatenate([one, rng.standard_normal((count, 16))]).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_leaders_change_no_group(tmp_path, monkeypatch, seed):
    vectors = clumps(seed, 12, 30, 12, 0.35)
    plain = groups_of(tmp_path / "a", vectors, 10**9, monkeypatch, 0.93)
    led = groups_of(tmp_path / "b", vectors, 0, monkeypatch, 0.93)
    assert len(np.unique(plain)) < len(plain)
    np.testing.assert_array_equal(plain, led)


def test_components_have_no_leaders(tmp_path, monkeypatch):
    vectors = clumps(3, 12, 30, 12, 0.35)
    monkeypatch.setattr(leaders, "find_leaders", None)
    asked = {"groups": "components"}
    assert len(groups_of(tmp_path, vectors, 0, monkeypatch, **asked)) == len(vectors)


def test_pairs_of_a_heap_grow_as_its_images(tmp_path, monkeypatch):
    monkeypatch.setattr(near, "sanity", lambda *args, out: {})
    pairs = []

    def counted(*args, search=bar.neighbours):
        for row, found in search(*args):
            pairs.append(len(row))
            yield row, found

    monkeypatch.setattr(bar, "neighbours", counted)
    each = []
    for count in (200, 400, 800):
        pairs.clear()
        vectors = placeholders(count)
        found = groups_of(tmp_path / str(count), vectors, 0, monkeypatch, recall_sample=0)
        assert len(np.unique(found[:count])) == 1
        each.append(sum(pairs) / count)
    assert max(each) < 20
    assert each[2] < 1.5 * each[0]
