"""What is searched by torch's products, as on a card, is what Faiss finds; here on the CPU."""

import numpy as np
import pytest
import torch
from made_collection import clumps, exact_cosines

from curate.neighbours import on_card, search
from curate.neighbours.heads import heads
from curate.neighbours.search import Searchable, nearest, neighbours, principal_axes, unit

CPU = torch.device("cpu")
STORED = clumps(0, 40, 10, 24, 0.4).astype(np.float16)


@pytest.fixture(params=[10**6, 700], ids=["one block", "blocks of queries"])
def on_torch(request, monkeypatch):
    """Have every product computed as on a card, some queries at a time."""
    monkeypatch.setattr(on_card, "PRODUCTS", request.param)
    monkeypatch.setattr(search, "card", lambda: CPU)
    monkeypatch.setattr(search, "_faiss", None)


def pairs_of(vectors, threshold):
    units = unit(vectors)
    head = heads(units, principal_axes(units, 7))
    searched = Searchable(vectors, np.arange(len(vectors)), head)
    found = neighbours(searched, np.arange(len(vectors)), searched, threshold)
    return {(int(a), int(b)) for rows, others in found for a, b in zip(rows, others, strict=True)}


def test_the_most_similar_are_those_of_faiss_to_the_last_bit(monkeypatch, on_torch):
    ours = search.top_k(STORED, STORED[::3], 9)
    monkeypatch.undo()
    theirs = search.top_k(STORED, STORED[::3], 9)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_ties_beyond_the_proposals_go_to_the_first_rows(on_torch):
    """Of more equal vectors than are proposed, the range search finds all."""
    same = np.tile(STORED[:1], (60, 1))
    assert search.top_k(STORED[:1], same, 3)[1].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_pairs_that_reach_a_threshold_are_those_of_brute_force(on_torch, threshold):
    exact = exact_cosines(STORED, STORED)
    doubtful = np.abs(exact - threshold) < 1e-6
    expected = (exact >= threshold) & ~np.eye(len(STORED), dtype=bool)
    pairs = pairs_of(STORED, threshold)
    assert len(pairs) > 200
    assert pairs ^ set(zip(*np.nonzero(expected), strict=True)) <= set(
        zip(*np.nonzero(doubtful), strict=True)
    )


def test_clusters_are_as_tight_as_those_of_faiss(monkeypatch, on_torch):
    units = unit(STORED)
    ours = search.spherical_kmeans(units, 30, 12, 0)
    again = search.spherical_kmeans(units, 30, 12, 0)
    np.testing.assert_array_equal(ours, again)
    own = nearest(units, ours)
    monkeypatch.undo()
    np.testing.assert_array_equal(own, nearest(units, ours))
    theirs = search.spherical_kmeans(units, 30, 12, 0)
    tight, expected = (
        float((units * centroids[nearest(units, centroids)]).sum(axis=1).mean())
        for centroids in (ours, theirs)
    )
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-6)
    assert abs(tight - expected) < 0.02


def test_of_equal_vectors_no_cluster_is_left_out(on_torch):
    few = unit(np.repeat(STORED[[0, 100, 200]], 20, axis=0))
    centroids = search.spherical_kmeans(few, 8, 5, 0)
    assert centroids.shape == (8, 24)
    assert np.isfinite(centroids).all()
    nearest_ones = (few @ centroids.T).max(axis=1)
    assert nearest_ones.min() > 0.99


def test_without_a_driver_there_is_no_card(monkeypatch, tmp_path):
    monkeypatch.setattr(search, "DRIVER", tmp_path / "none")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert search.card() is None
    assert search.gpus_wanted() == 0
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert search.gpus_wanted() == 1
    monkeypatch.setattr(search, "DRIVER", tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert search.card() is None
