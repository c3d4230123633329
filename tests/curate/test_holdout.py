"""Copies of evaluation images are found, whatever set they are in, at an inclusive threshold."""

import numpy as np
import pytest
from made_collection import (
    Made,
    clear,
    clumps,
    exact_cosines,
    from_vectors,
    made_collection,
)

from curate.dedup.holdout import search as search_holdouts
from curate.neighbours import search

VECTORS = clumps(0, 15, 8, 8, 0.4)


def hits_of(work, crawl, holdouts, threshold):
    """Return the hits as tuples (number, set, row), and their similarities."""
    hits, similarity = [], []
    for start, stop in [(0, 50), (50, len(crawl))]:
        out = work / f"hits-{len(list(work.glob('hits-*')))}"
        out.mkdir()
        search_holdouts(crawl, holdouts, start, stop, threshold, 1, out=out)
        hits += map(tuple, np.load(out / "hits.npy").tolist())
        similarity += np.load(out / "similarity.npy").tolist()
    return hits, similarity


def test_hits_are_those_of_brute_force_and_name_the_nearest(tmp_path):
    crawl = from_vectors(tmp_path, VECTORS)
    sets = [VECTORS[::13] + np.float32(0.05), clumps(2, 6, 5, 8, 0.4)]
    holdouts = [from_vectors(tmp_path, vectors, name="held") for vectors in sets]
    exact = exact_cosines(VECTORS, np.concatenate(sets))
    threshold = clear(exact, 0.95)
    hits, similarity = hits_of(tmp_path, crawl, holdouts, threshold)
    assert [number for number, *_ in hits] == np.flatnonzero(exact.max(1) >= threshold).tolist()
    assert 0 < len(hits) < len(VECTORS)
    for (number, place, row), cosine in zip(hits, similarity, strict=True):
        assert exact[number].max() == pytest.approx(cosine, abs=1e-6)
        assert exact[number, place * len(sets[0]) + row] == pytest.approx(cosine, abs=1e-6)


def test_the_threshold_is_inclusive(tmp_path):
    crawl = from_vectors(tmp_path, VECTORS)
    held = from_vectors(tmp_path, VECTORS[1:2], name="held")
    units = search.unit(VECTORS[:2].astype(np.float16))
    own = search.cosine(units[:1], units[1:])[0]
    above = np.nextafter(own, np.float32(2))
    assert (0, 0, 0) in hits_of(tmp_path, crawl, [held], float(own))[0]
    assert (0, 0, 0) not in hits_of(tmp_path, crawl, [held], float(above))[0]


def test_ties_go_to_the_first_set_and_its_first_key(tmp_path):
    crawl = from_vectors(tmp_path, VECTORS)
    same = np.tile(VECTORS[3], (40, 1))
    holdouts = [
        from_vectors(tmp_path, vectors, name="held") for vectors in (VECTORS[9:10], same, same)
    ]
    hits, similarity = hits_of(tmp_path, crawl, holdouts, 0.99999)
    assert (3, 1, 0) in hits
    assert max(similarity) <= 1


def test_broken_and_decided_images_are_neither_hit_nor_hit(tmp_path):
    vector = VECTORS[0]
    crawl = made_collection(
        tmp_path,
        [Made("p/0", None, problem="broken"), Made("p/1", vector), Made("p/2", vector)],
    )
    empty = made_collection(tmp_path, [Made("h/0", None, problem="broken")], name="held")
    held = made_collection(tmp_path, [Made("h/0", None), Made("h/1", vector)], name="held")
    for start, stop in [(0, 1), (1, 3)]:
        search_holdouts(crawl, [empty, held], start, stop, 0.9, 1, out=tmp_path)
        hits = np.load(tmp_path / "hits.npy")
        assert hits.tolist() == [[number, 1, 1] for number in range(1, stop)]
    search_holdouts(crawl, [empty], 0, 3, -1.0, 1, out=tmp_path)
    assert np.load(tmp_path / "hits.npy").shape == (0, 3)
