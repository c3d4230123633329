"""Which image stands for its group is what a policy says, and settings that cannot be are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import (
    Made,
    clear,
    clumps,
    clustered,
    deduped,
    exact_cosines,
    from_vectors,
    grouped,
    made_collection,
    ranked,
)
from pydantic import ValidationError
from test_groups import at_angle, reference_components

from curate.catalogue.collection import EXPORTED
from curate.catalogue.keyed_order import keyed_hash
from curate.dedup.keep import NUMBER, POLICIES, RANK
from curate.dedup.near import DedupSettings
from curate.dedup.settle import SAME, most_central
from curate.neighbours.search import unit

VECTOR = [1.0, 0.0, 0.0, 0.0]


def best_of(work, images, keep, seed=0):
    """Return the keys of the images that stand for their contents, from best to worst."""
    collection = made_collection(work, images)
    number = np.load(ranked(collection, work, _keeping(keep, seed)) / NUMBER)
    return collection.keys(number)


def _keeping(keep, seed=0, **more):
    if POLICIES[keep].central:
        more["groups"] = "components"
    return DedupSettings(keep=keep, seed=seed, **more)


def test_resolution_is_pixels_then_bytes_then_the_first_key(tmp_path):
    images = [
        Made("p/0", VECTOR, (10, 90), 5),
        Made("p/1", VECTOR, (30, 30), 7),
        Made("p/2", VECTOR, (90, 10), 7),
        Made("p/3", VECTOR, (31, 30), 1),
        Made("p/4", VECTOR, (46_341, 46_341), 1),
        Made("p/5", None, problem="not an image"),
    ]
    assert best_of(tmp_path, images, "resolution") == [f"p/{row}" for row in (4, 3, 1, 2, 0)]


def test_bytes_are_bytes_then_pixels_then_the_first_key(tmp_path):
    sizes = [(40, 40, 5), (30, 30, 9), (31, 30, 9), (30, 31, 9), (90, 90, 1)]
    images = [Made(f"p/{row}", VECTOR, size[:2], size[2]) for row, size in enumerate(sizes)]
    assert best_of(tmp_path, images, "bytes") == [f"p/{row}" for row in (2, 3, 1, 0, 4)]


def test_metadata_is_what_is_filled_then_the_longest_caption_then_resolution(tmp_path):
    told = [
        (None, None, 90),
        ("a cat", None, 40),
        ("  ", "https://a.org", 50),
        ("a cat", "https://a.org", 30),
        ("a dog", "https://a.org", 31),
        ("a grey cat", "https://a.org", 20),
    ]
    images = [
        Made(f"p/{row}", VECTOR, (side, side), caption=caption, url=url)
        for row, (caption, url, side) in enumerate(told)
    ]
    expected = [f"p/{row}" for row in (5, 4, 3, 1, 2, 0)]
    assert best_of(tmp_path, images, "metadata") == expected


def test_of_the_same_bytes_the_best_described_one_stands_for_all(tmp_path):
    images = [Made("p/0", VECTOR, content="x", url=None), Made("p/1", VECTOR, content="x")]
    images += [Made("p/2", [0.999, 0.01, 0, 0], url=None, caption="")]
    collection = made_collection(tmp_path, images)
    assert deduped(collection, tmp_path, 0.9).tolist() == [0, 0, 0]
    assert deduped(collection, tmp_path, 0.9, _keeping("metadata")).tolist() == [1, 1, 1]
    rank = np.load(ranked(collection, tmp_path, _keeping("metadata")) / RANK)
    assert rank.tolist() == [0, 0, 1]


def test_a_random_order_is_that_of_a_hash_of_the_key_and_the_seed(tmp_path):
    images = [Made(f"p/{row:02d}", VECTOR) for row in range(20)]
    orders = [best_of(tmp_path, images, "random", seed) for seed in (0, 1)]
    assert orders[0] != orders[1]
    for seed, order in enumerate(orders):
        assert order == sorted(order, key=lambda key: -keyed_hash(key, seed))
    fewer = best_of(tmp_path, images[::2], "random", 0)
    assert fewer == [key for key in orders[0] if key in fewer]


def test_the_most_central_image_has_the_highest_mean_cosine():
    for seed in range(20):
        vectors = unit(clumps(seed, 1, 9, 6, 0.9))
        wide = vectors.astype(np.float64)
        mean = (wide @ wide.T).sum(1)
        assert mean[most_central(vectors)] == pytest.approx(mean.max(), abs=1e-5)
    assert most_central(unit(np.ones((3, 4), np.float32))) == 0


def test_the_middle_of_a_chain_is_the_most_central(tmp_path):
    images = [
        Made(f"p/{row}", vector, (90 - row, 90))
        for row, vector in enumerate(at_angle(0, 15, 30, 45, 60))
    ]
    collection = made_collection(tmp_path, images)
    assert deduped(collection, tmp_path, 0.95, _keeping("centrality")).tolist() == [2] * 5


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**20),
    st.sampled_from(list(POLICIES)),
    st.sampled_from([None, 0.8, 0.93, 0.97]),
    st.sampled_from([0, 20]),
)
def test_components_are_those_of_brute_force_by_every_policy_and_floor(
    tmp_path_factory, seed, keep, floor, stay
):
    work = tmp_path_factory.mktemp("work")
    vectors = clumps(seed, 6, 10, 6, 0.5)
    collection = from_vectors(work, vectors)
    exported = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:stay])
    np.save(collection.folder / EXPORTED, np.stack([exported, np.arange(stay)], 1))
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, 0.95)
    floor = None if floor is None else clear(exact, floor)
    chosen = _keeping(keep, groups="components", chain_floor=floor, probes=10**6)
    order = np.load(ranked(collection, work, chosen) / NUMBER).tolist()
    clusters, _ = clustered(collection, work)
    stands = np.load(
        grouped(collection, clusters, work, threshold, chosen)[0] / "representative.npy"
    )
    expected = reference_settled(
        exact, order, threshold, POLICIES[keep].central, floor, set(exported.tolist())
    )
    assert stands.tolist() == expected
    assert (stands[exported] == exported).all()


def reference_settled(exact, order, threshold, central, floor, fixed):
    """Return who stands for every image, by the definition; `order` is from best to worst.

    Those of `fixed` stand for themselves, the first of a component for others too.
    """
    stands = [-1] * len(order)
    waiting = [list(order)]
    while waiting:
        rows = waiting.pop()
        pairs = [
            (a, b)
            for a in range(len(rows))
            for b in range(a)
            if exact[rows[a], rows[b]] >= threshold
        ]
        label = reference_components(pairs, len(rows))
        for root in set(label):
            mine = [row for row, own in zip(rows, label, strict=True) if own == root]
            best = mine[0]
            if central and best not in fixed:
                others = max(1, len(mine) - 1)
                means = {row: (exact[row, mine].sum() - 1) / others for row in mine}
                best = next(row for row in mine if means[row] >= max(means.values()) - SAME)
            left = [
                row
                for row in mine
                if row in fixed or (floor is not None and exact[row, best] < floor)
            ]
            for row in set(mine) - set(left) | {best}:
                stands[row] = best
            if set(left) - {best}:
                waiting.append([row for row in left if row != best])
    return stands


def test_a_floor_parts_a_chain(tmp_path):
    # 0.966 from one to the next, 0.866 from one to the next but one
    vectors = at_angle(0, 15, 30, 45, 60, 75)
    images = [Made(f"p/{row}", vector, (90 - row, 90)) for row, vector in enumerate(vectors)]
    collection = made_collection(tmp_path, images)

    def stands(floor):
        chosen = DedupSettings(groups="components", chain_floor=floor)
        return deduped(collection, tmp_path, 0.95, chosen).tolist()

    assert stands(None) == stands(-1) == [0] * 6
    assert stands(0.8) == [0, 0, 0, 3, 3, 3]
    assert stands(0.95) == [0, 0, 2, 2, 4, 4]
    assert stands(1) == list(range(6))


@pytest.mark.parametrize("keep", ["resolution", "centrality"])
def test_more_than_64_near_copies_and_their_same_bytes_stay_one_group(tmp_path, keep):
    rng = np.random.default_rng(0)
    near = clumps(5, 1, 1, 16, 0.0) + 0.003 * rng.standard_normal((200, 16))
    images = [Made(f"a/{row:03d}", vector) for row, vector in enumerate(near)]
    images += [Made(f"b/{row:03d}", near[7], content="a/007") for row in range(100)]
    collection = made_collection(tmp_path, images)
    chosen = _keeping(keep, groups="components", chain_floor=0.9, edges_per_image=1)
    stands = deduped(collection, tmp_path, 0.99, chosen)
    assert len(set(stands.tolist())) == 1
    if keep == "resolution":
        assert stands[0] == 0


@pytest.mark.parametrize(
    "wrong", [{"keep": "centrality"}, {"chain_floor": 0.5}, {"search": "pool"}]
)
def test_what_only_components_have_is_refused_of_greedy_groups(wrong):
    with pytest.raises(ValidationError, match=r"dedup\.groups=components"):
        DedupSettings(**wrong)
    assert DedupSettings(groups="components", **wrong)
