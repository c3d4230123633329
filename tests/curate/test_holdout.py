"""Copies of evaluation images are found, whatever set they are in, at an inclusive threshold."""

import numpy as np
import pytest
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

from curate.dedup.holdout import hits_of_groups
from curate.dedup.holdout import search as search_holdouts
from curate.dedup.near import DedupSettings
from curate.dedup.overlap import Overlap, count_shared
from curate.neighbours import search
from curate.retrieval.candidates import touched_by_holdouts

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


def chain_of(work, mode, floor=None):
    """Return which links of a chain a holdout image at its end takes, and what names it.

    The holdout image is a copy of the first link alone, each link one of the next.
    """
    vectors = at_angle(0, 15, 30, 45)
    images = [Made(f"p/{row}", vector, (50, 50)) for row, vector in enumerate(vectors)]
    images[2] = Made("p/2", vectors[2], (90, 90))
    images += [Made("p/x", vectors[0], (50, 50), content="p/0"), Made("p/y", at_angle(90)[0])]
    crawl = made_collection(work, images)
    held = made_collection(work, [Made("h/0", at_angle(-8)[0])], name="held")
    clusters, _ = clustered(crawl, work)
    chosen = DedupSettings(groups=mode, chain_floor=floor)
    groups, _ = grouped(crawl, clusters, work, 0.95, chosen)
    out = work / "held"
    out.mkdir()
    search_holdouts(crawl, [held], 0, len(crawl), 0.98, 1, out=out)
    representative = np.load(groups / "representative.npy")
    touched = touched_by_holdouts(representative, [out])
    found, similarity = hits_of_groups(representative, [out])
    return touched.tolist(), found.tolist(), similarity.tolist()


def test_a_component_goes_whole_and_names_the_nearest_holdout_image(tmp_path):
    touched, found, [similarity] = chain_of(tmp_path, "components")
    assert touched == [True] * 5 + [False]
    assert found == [[2, 0, 0, 0]]
    assert similarity == pytest.approx(np.cos(np.radians(8)), abs=1e-3)


def test_a_greedy_group_goes_and_the_copy_of_a_copy_in_another_group_stays(tmp_path):
    touched, found, _ = chain_of(tmp_path, "greedy")
    assert touched == [True, False, False, False, True, False]
    assert found == [[0, 0, 0, 0]]


def test_a_floor_parts_what_a_holdout_image_takes(tmp_path):
    assert chain_of(tmp_path, "components", 0.9)[0] == [True, False, False, False, True, False]


def test_of_many_hits_in_a_group_the_most_similar_counts(tmp_path):
    representative = np.array([0, 0, 2, 2, 2, -1])
    hits = [[[1, 0, 7], [4, 1, 3]], [[2, 0, 5], [3, 0, 6]]]
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder, rows, similarity in zip(folders, hits, ([0.5, 0.9], [0.9, 0.7]), strict=True):
        folder.mkdir()
        np.save(folder / "hits.npy", np.array(rows))
        np.save(folder / "similarity.npy", np.array(similarity, np.float32))
    found, similarity = hits_of_groups(representative, folders)
    assert found.tolist() == [[0, 1, 0, 7], [2, 2, 0, 5]]
    assert similarity.tolist() == [0.5, np.float32(0.9)]
    assert hits_of_groups(representative, [])[0].shape == (0, 4)


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
