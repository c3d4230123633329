"""Groups from edges: what greedy and components decide, in one pass or in many."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import (
    Made,
    best_first,
    clear,
    clumps,
    clustered,
    deduped,
    exact_cosines,
    files_of,
    from_vectors,
    grouped,
    made_collection,
)

from curate.dedup import groups
from curate.dedup.groups import (
    COVERED,
    REPRESENTATIVE,
    UNDECIDED,
    EdgeBuffer,
    best_edges,
    decide,
    greedy,
    sorted_edges,
    spanning_forest,
)
from curate.dedup.near import DedupSettings

IMAGES = 24


def random_graph(seed, share):
    """Return a share of all pairs of ranks, the worse first."""
    chosen = np.random.default_rng(seed).random((IMAGES, IMAGES)) < share
    return [(int(a), int(b)) for a, b in np.argwhere(np.tril(chosen, -1))]


GRAPHS = st.builds(random_graph, st.integers(0, 2**20), st.floats(0, 0.7))


def as_edges(pairs):
    return np.array(pairs, np.int64).reshape(-1, 2)


def reference_greedy(pairs, count=IMAGES):
    """Return who stands for every rank, by the definition."""
    better = {rank: {b for a, b in pairs if a == rank} for rank in range(count)}
    stands = list(range(count))
    for rank in range(count):
        stands[rank] = min((b for b in better[rank] if stands[b] == b), default=rank)
    return stands


def reference_components(pairs, count=IMAGES):
    label = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
    return label


def in_passes(pairs, per_image):
    """Decide greedily with a bounded number of edges at a time; return who stands for whom."""
    status = np.full(IMAGES, UNDECIDED, np.int8)
    stands = np.full(IMAGES, -1, np.int64)
    passes = 0
    while True:
        passes += 1
        edges = sorted_edges([as_edges(pairs)])
        alive = (status[edges] != COVERED).all(1) & (status[edges[:, 0]] == UNDECIDED)
        held, more = best_edges(edges[alive], per_image)
        before = int((status == UNDECIDED).sum())
        left = greedy(held, more, status, stands)
        assert left == (status == UNDECIDED).sum() < before
        if not left:
            return stands.tolist(), passes


@settings(max_examples=100, deadline=None)
@given(GRAPHS, st.integers(1, 3), st.integers(1, 9))
def test_walking_decides_what_rounds_of_whole_arrays_do(pairs, rounds, per_image):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "ROUNDS", rounds)
        assert in_passes(pairs, per_image)[0] == reference_greedy(pairs)


@settings(max_examples=150, deadline=None)
@given(GRAPHS, st.integers(1, 4))
def test_many_bounded_passes_decide_what_one_unbounded_pass_does(pairs, per_image):
    expected = reference_greedy(pairs)
    assert in_passes(pairs, 10**6) == (expected, 1)
    assert in_passes(pairs, per_image)[0] == expected


@settings(max_examples=50, deadline=None)
@given(GRAPHS, st.integers(0, IMAGES), st.sampled_from(["greedy", "components"]))
def test_the_best_stand_for_themselves_where_they_stay(pairs, stays, mode):
    status, stands = np.full(IMAGES, UNDECIDED, np.int8), np.full(IMAGES, -1, np.int64)
    edges = sorted_edges([as_edges(pairs)])
    assert decide(edges, np.empty(0, np.int64), mode, 10**6, status, stands, stays) == 0
    expected = reference_components(pairs)
    if mode == "greedy":
        expected = reference_greedy([(a, b) for a, b in pairs if a >= stays])
    assert stands.tolist() == [*range(stays), *expected[stays:]]
    assert ((status == REPRESENTATIVE) == (stands == np.arange(IMAGES))).all()


def test_a_bounded_number_of_edges_takes_several_passes():
    passes = [in_passes(random_graph(seed, 0.4), 1)[1] for seed in range(20)]
    assert max(passes) > 2


@settings(max_examples=50, deadline=None)
@given(GRAPHS)
def test_a_spanning_forest_connects_what_the_edges_connect(pairs):
    forest = spanning_forest(as_edges(pairs))
    expected = reference_components(pairs)
    stands = np.arange(IMAGES)
    stands[forest[:, 0]] = forest[:, 1]
    assert stands.tolist() == expected
    assert len(forest) < IMAGES
    np.testing.assert_array_equal(spanning_forest(forest), forest)


@settings(max_examples=50, deadline=None)
@given(GRAPHS, st.randoms(), st.integers(1, 3), st.integers(0, 9), st.sampled_from(["greedy", "c"]))
def test_the_order_in_which_edges_arrive_changes_nothing(pairs, random, per_image, at, mode):
    mode = "components" if mode == "c" else mode

    def collected(pairs, pieces):
        buffer = EdgeBuffer(mode, per_image)
        for piece in np.array_split(as_edges(pairs), pieces):
            buffer.add(piece[:, 0], piece[:, 1])
        return [array.tolist() for array in buffer.result()]

    whole = collected(pairs, 1)
    shuffled = pairs + pairs[::3]
    random.shuffle(shuffled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "COMPACT_AT", at)
        assert collected(shuffled, 7) == whole


def test_a_buffer_holds_a_bounded_number_of_edges(monkeypatch):
    monkeypatch.setattr(groups, "COMPACT_AT", 1000)
    buffer = EdgeBuffer("greedy", per_image=5)
    for better in range(400):
        buffer.add(np.arange(better + 1, 500), np.full(499 - better, better))
        assert len(buffer._held) + buffer._count <= 5 * 500 + 1000 + 500
    held, truncated = buffer.result()
    assert len(held) == 0 + 1 + 2 + 3 + 4 + 5 * 495
    assert truncated.tolist() == list(range(6, 500))


def at_angle(*degrees):
    turns = np.radians(degrees)
    return np.stack([np.cos(turns), np.sin(turns)] + 6 * [np.zeros(len(turns))], axis=1)


@pytest.mark.parametrize(
    ("mode", "pixels", "stands"),
    [
        ("components", (30, 20, 10), [0, 0, 0]),
        ("components", (10, 20, 30), [2, 2, 2]),
        ("greedy", (30, 20, 10), [0, 0, 2]),
        ("greedy", (30, 10, 20), [0, 0, 2]),
        ("greedy", (20, 10, 30), [0, 2, 2]),
        ("greedy", (20, 30, 10), [1, 1, 1]),
    ],
)
def test_a_chain_keeps_its_ends_in_greedy_and_one_in_components(tmp_path, mode, pixels, stands):
    # A~B 0.95, B~C 0.95, A~C 0.80
    vectors = at_angle(0, 18.19, 36.38)
    images = [
        Made(f"p/{row}", vector, (size, size))
        for row, (vector, size) in enumerate(zip(vectors, pixels, strict=True))
    ]
    collection = made_collection(tmp_path, images)
    assert deduped(collection, tmp_path, 0.949, DedupSettings(groups=mode)).tolist() == stands


def test_a_later_pass_finds_the_representative_that_an_earlier_one_held_no_edge_to(tmp_path):
    # The last image is next to a covered one and to a worse representative: one edge says nothing.
    vectors = at_angle(0, 17, 50, 34)
    images = [Made(f"p/{row}", vector, (90 - row, 90 - row)) for row, vector in enumerate(vectors)]
    collection = made_collection(tmp_path, images)
    clusters, _ = clustered(collection, tmp_path)
    folder, passes = grouped(
        collection, clusters, tmp_path, 0.951, DedupSettings(edges_per_image=1)
    )
    assert np.load(folder / "representative.npy").tolist() == [0, 0, 2, 2]
    assert passes == 2


def test_the_representative_has_most_pixels_then_bytes_then_the_first_key(tmp_path):
    vectors = np.tile(at_angle(10), (6, 1))
    sizes = [(8, 8, 9), (9, 9, 5), (9, 9, 7), (9, 9, 7), (27, 3, 7), (10, 8, 99)]
    images = [
        Made(f"p/{row}", vector, (width, height), nbytes)
        for row, (vector, (width, height, nbytes)) in enumerate(zip(vectors, sizes, strict=True))
    ]
    stands = deduped(made_collection(tmp_path, images), tmp_path, 0.9)
    assert stands.tolist() == [2] * 6


@pytest.mark.parametrize("mode", ["greedy", "components"])
@pytest.mark.parametrize("per_image", [1, 3, 10**6])
def test_groups_of_vectors_are_those_of_the_definition(tmp_path, mode, per_image):
    vectors = clumps(3, 12, 25, 8, 0.5)
    collection = from_vectors(tmp_path, vectors)
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, 0.9)
    by_rank = best_first(collection, tmp_path)
    rank = np.argsort(by_rank)
    pairs = [(a, b) for a, b in np.argwhere(exact[by_rank][:, by_rank] >= threshold) if a > b]
    reference = reference_greedy if mode == "greedy" else reference_components
    expected = by_rank[reference(pairs, len(vectors))][rank]
    clusters, _ = clustered(collection, tmp_path)
    chosen = DedupSettings(groups=mode, edges_per_image=per_image, probes=10**6)
    folder, passes = grouped(collection, clusters, tmp_path, threshold, chosen)
    stands = np.load(folder / "representative.npy")
    np.testing.assert_array_equal(stands, expected)
    assert (passes > 1) == (mode == "greedy" and per_image < 10)
    sizes = np.bincount(stands, minlength=len(stands))
    np.testing.assert_array_equal(np.load(folder / "grouped.npy"), sizes[stands] > 1)
    if mode == "greedy":
        assert (exact[np.arange(len(stands)), stands] >= threshold).all()
        kept = np.flatnonzero(stands == np.arange(len(stands)))
        assert (exact[kept][:, kept] - np.eye(len(kept)) < threshold).all()


def test_groups_of_the_survivors_are_single(tmp_path):
    vectors = clumps(4, 10, 20, 8, 0.5)
    stands = deduped(from_vectors(tmp_path / "one", vectors), tmp_path / "one", 0.9)
    kept = vectors[stands == np.arange(len(stands))]
    again = deduped(from_vectors(tmp_path / "two", kept), tmp_path / "two", 0.9)
    assert len(kept) < len(vectors)
    assert again.tolist() == list(range(len(kept)))


def test_more_copies_than_any_k_are_one_group(tmp_path):
    rng = np.random.default_rng(0)
    one, other = clumps(5, 2, 1, 16, 0.0)
    near = one + 0.003 * rng.standard_normal((300, 16))
    images = [Made(f"a/{row:03d}", other, content="same") for row in range(300)]
    images += [Made(f"b/{row:03d}", vector) for row, vector in enumerate(near)]
    images += [Made(f"c/{row:03d}", near[7], content="b/007") for row in range(300)]
    collection = made_collection(tmp_path, images)
    stands = deduped(collection, tmp_path, 0.99, DedupSettings(edges_per_image=1))
    assert stands.tolist() == [0] * 300 + [300] * 600


def test_what_is_decided_already_takes_no_part(tmp_path):
    vector = at_angle(30)[0]
    images = [Made("p/0", vector, (99, 99), problem="broken"), Made("p/1", vector)]
    images += [Made("p/2", vector, content="p/0"), Made("p/3", None)]
    stands = deduped(made_collection(tmp_path, images), tmp_path, 0.9)
    assert stands.tolist() == [-1, 1, 1, -1]


def test_nothing_usable_gives_no_group(tmp_path):
    collection = made_collection(tmp_path, [Made("p/0", None), Made("p/1", None, problem="broken")])
    assert deduped(collection, tmp_path, 0.9).tolist() == [-1, -1]


def test_the_same_input_gives_the_same_bytes(tmp_path):
    vectors = clumps(6, 8, 20, 8, 0.5)
    folders = []
    for name in ("one", "two"):
        collection = from_vectors(tmp_path / name, vectors)
        clusters, _ = clustered(collection, tmp_path / name)
        settings = DedupSettings(edges_per_image=2)
        folders.append(grouped(collection, clusters, tmp_path / name, 0.9, settings)[0].parent)
    assert files_of(folders[0]) == files_of(folders[1])
