"""Copies of evaluation images are found, whatever set they are in, at an inclusive threshold."""

from dataclasses import replace

import numpy as np
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
    traced,
)
from test_groups import at_angle

from curate.dedup.chains import load_chains
from curate.dedup.holdout import search as search_holdouts
from curate.dedup.near import DedupSettings
from curate.dedup.overlap import Overlap, count_shared
from curate.neighbours import search
from curate.neighbours.cluster import ClusterSettings

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


def test_copies_of_copies_go_too_and_each_names_the_next_one(tmp_path):
    # The holdout image is a copy of the first link of a chain alone, each link one of the next.
    vectors = at_angle(0, 15, 30, 45)
    images = [Made(f"p/{row}", vector) for row, vector in enumerate(vectors)]
    images += [Made("p/x", vectors[0], content="p/0"), Made("p/y", at_angle(90)[0])]
    crawl = made_collection(tmp_path, images)
    held = made_collection(tmp_path, [Made("h/0", at_angle(-8)[0])], name="held")
    (out := tmp_path / "held").mkdir()
    search_holdouts(crawl, [held], 0, len(crawl), 0.98, 1, out=out)
    chains = load_chains(traced(crawl, [out], tmp_path, 0.95))
    assert not chains.place.any()
    assert not chains.row.any()
    np.testing.assert_allclose(chains.to_holdout, np.cos(np.radians(8)), atol=1e-3)
    steps = zip(chains.following.tolist(), chains.last.tolist(), strict=True)
    found = dict(zip(chains.number.tolist(), steps, strict=True))
    assert found == {0: (0, 0), 1: (0, 0), 2: (1, 0), 3: (2, 0), 4: (4, 4)}


def connected_with(hits, linked):
    """Return the images that chains of linked pairs connect with hits, by brute force."""
    reached = np.isin(np.arange(len(linked)), hits)
    while (more := reached | linked[:, reached].any(1)).sum() > reached.sum():
        reached = more
    return np.flatnonzero(reached).tolist()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**20), kinds=st.sampled_from([None, 40]))
def test_what_is_dropped_is_what_chains_of_copies_lead_to(tmp_path_factory, seed, kinds):
    work = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(seed)
    images = []
    for row, vector in enumerate(clumps(seed, 10, 12, 6, 0.5)):
        digest = f"{rng.integers(kinds):016x}" if kinds else None
        image = Made(f"p/{row:03d}", vector, (50 + row % 7, 50), phash=digest)
        if row % 10 == 9:  # the bytes of the one before
            image = replace(images[-1], key=image.key, content=images[-1].key)
        images.append(image)
    crawl = made_collection(work, images)
    vectors = np.array([image.vector for image in images])
    digests = np.array([image.phash or image.sha256 for image in images])
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, 0.95)
    same = digests[:, None] == digests
    clusters, _ = clustered(crawl, work, ClusterSettings(clusters=3))
    if kinds:
        grouped(crawl, clusters, work, threshold, DedupSettings(hash="phash"))
    held = from_vectors(work, vectors[rng.permutation(len(vectors))[:2]], name="held")
    (out := work / "held").mkdir()
    search_holdouts(crawl, [held], 0, len(crawl), 0.999, 1, out=out)
    hits = np.load(out / "hits.npy")[:, 0].tolist()
    stands = next(work.glob("dedup/*/hashed/stands.npy"), None)
    chains = load_chains(traced(crawl, [out], work, threshold, stands, clusters))
    linked = (exact >= threshold) | same | (exact > 1 - 1e-9)
    assert chains.number.tolist() == connected_with(hits, linked)
    rows = {number: row for row, number in enumerate(chains.number.tolist())}
    for number, row in rows.items():
        following, last = int(chains.following[row]), int(chains.last[row])
        assert (following == number) == (number in hits)
        assert exact[number, following] == pytest.approx(chains.similarity[row], abs=1e-6)
        assert exact[number, following] >= threshold or same[number, following]
        assert last == chains.last[rows[following]]
        assert last in hits


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**20), block=st.sampled_from([4, 1000]))
def test_chains_lead_through_images_of_included_seeds_which_go_too(tmp_path_factory, seed, block):
    work = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(seed)
    vectors = clumps(seed, 8, 12, 6, 0.5)
    of = rng.integers(3, size=len(vectors))  # of the crawl, or of one of two included seeds
    sets = []
    for place, name in enumerate(("p", "q", "r")):
        rows = np.flatnonzero(of == place)
        images = [Made(f"{name}/{row:03d}", vectors[row].copy()) for row in rows]
        images[-1] = replace(images[-1], vector=images[0].vector, content=images[0].key)
        vectors[rows[-1]] = vectors[rows[0]]
        if place:  # takes no part
            images[0] = Made(images[0].key, None, problem="broken")
            vectors[rows[0]] = 0
        sets.append(made_collection(work, images, name=name))
    order = np.concatenate([np.flatnonzero(of == place) for place in range(3)])
    vectors, starts = vectors[order], np.cumsum([0, *map(len, sets)])
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, 0.95)
    held = from_vectors(work, vectors[rng.permutation(len(vectors))[:3]], name="held")
    hits = [work / f"held-{place}" for place in range(3)]
    for out, own in zip(hits, sets, strict=True):
        out.mkdir()
        search_holdouts(own, [held], 0, len(own), 0.999, 1, out=out)
    hit = np.concatenate(
        [np.load(out / "hits.npy")[:, 0] + at for out, at in zip(hits, starts[:3], strict=True)]
    )
    clusters, _ = clustered(sets[0], work, ClusterSettings(clusters=3))
    seeds = [(own, [out]) for own, out in zip(sets[1:], hits[1:], strict=True)]
    how = dict(clusters=clusters, seeds=seeds, block=block)
    folder = traced(sets[0], hits[:1], work, threshold, **how)
    dropped, following = [], {}
    for place, start in enumerate(starts[:3].tolist()):
        chains = load_chains(folder, place)
        dropped += (chains.number + start).tolist()
        for row, number in enumerate((chains.number + start).tolist()):
            following[number] = int(chains.following[row]), float(chains.similarity[row])
            last = int(chains.last[row])
            assert last in hit
            to_holdout = exact_cosines(vectors[last : last + 1], held.vectors(chains.row[[row]]))
            assert to_holdout[0, 0] == pytest.approx(chains.to_holdout[row], abs=1e-6)
    assert dropped == connected_with(hit, exact >= threshold)
    for number, (other, similarity) in following.items():
        assert (other == number) == (number in hit)
        assert other in following
        assert exact[number, other] == pytest.approx(similarity, abs=1e-6)
        assert exact[number, other] >= threshold or other == number


@pytest.mark.parametrize(("shared", "told"), [(0, False), (1, True), (4, True)])
def test_a_holdout_that_is_a_seed_in_large_part_is_told(tmp_path, shared, told):
    seed = [Made(f"s/{row}", VECTORS[row]) for row in range(20)]
    seed += [Made(f"s/h{row}", VECTORS[row], content=f"h/{row}") for row in range(shared)]
    held = [Made(f"h/{row}", VECTORS[row]) for row in range(10)]
    collections = [made_collection(tmp_path, images, name="x") for images in (seed, held)]
    counts = count_shared(*collections, out=tmp_path)
    assert counts == {"shared": shared, "images": 10}
    problem = Overlap("animals", "held", **counts).problem
    assert (problem is not None) == told
    if problem:
        assert f"{shared} of its 10 images are images of seed animals" in problem
