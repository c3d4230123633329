"""Searches and k-means on a card give the float64 formula's results; nothing here needs Faiss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curate.neighbours import search
from curate.neighbours.heads import heads
from curate.neighbours.on_card import FlatOnCard, kmeans
from curate.neighbours.search import Searchable, neighbours, principal_axes, top_k, unit

pytestmark = pytest.mark.gpu


def clumped(count: int, dim: int = 64) -> np.ndarray:
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((50, dim))[rng.integers(50, size=count)]
    scale = rng.choice([0.05, 0.5], (count, 1))
    return (middles + scale * rng.standard_normal((count, dim))).astype(np.float16)


def exact_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x.astype(np.float64) for x in (a, b))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


@pytest.fixture
def on_device(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "card", lambda: device)


def test_products_are_whole_float32(device: torch.device) -> None:
    """TF32 would be wrong by a thousandth; the searches allow for a ten-thousandth."""
    vectors = unit(clumped(500))
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        products, rows = FlatOnCard(vectors, device).search(vectors, 500)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    exact = np.take_along_axis(vectors.astype(np.float64) @ vectors.T.astype(np.float64), rows, 1)
    np.testing.assert_allclose(products, exact, atol=float(search.SLACK) / 20)


@pytest.mark.usefixtures("on_device")
def test_the_most_similar_are_those_of_float64() -> None:
    stored = clumped(2_000)
    similarity, rows = top_k(stored[:300], stored, 10)
    exact = exact_cosines(stored[:300], stored)
    np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :10], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, rows, 1), similarity, atol=1e-6)


@pytest.mark.usefixtures("on_device")
def test_pairs_that_reach_a_threshold_are_those_of_float64() -> None:
    stored, threshold = clumped(1_000), 0.9
    units = unit(stored)
    head = heads(units, principal_axes(units, 20))
    searched = Searchable(stored, np.arange(len(stored)), head)
    found = neighbours(searched, np.arange(len(stored)), searched, threshold)
    pairs = {(int(a), int(b)) for rows, others in found for a, b in zip(rows, others, strict=True)}
    exact = exact_cosines(stored, stored)
    np.fill_diagonal(exact, 0)
    sure, possible = (
        set(zip(*np.nonzero(exact >= threshold + d), strict=True)) for d in (1e-6, -1e-6)
    )
    assert len(sure) > 1_000
    assert sure <= pairs <= possible


def test_clusters_are_the_same_in_every_run(device: torch.device) -> None:
    """And as tight as those that the CPU comes to, whose products are rounded otherwise."""
    units = unit(clumped(3_000))
    here, again, there = (
        kmeans(units, 60, 8, 0, each) for each in (device, device, torch.device("cpu"))
    )
    np.testing.assert_array_equal(here, again)
    tight, expected = (float((units @ each.T).max(axis=1).mean()) for each in (here, there))
    assert abs(tight - expected) < 0.01
