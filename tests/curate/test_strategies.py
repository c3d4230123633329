"""Each strategy of retrieval against its definition, one image after another, and the paper's counts."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import (
    Made,
    blocks_of,
    candidates_of,
    clumps,
    clustered,
    exact_cosines,
    grouped,
    made_collection,
    searched,
)

from curate.catalogue.collection import Catalogued
from curate.catalogue.keyed_order import keyed_hash
from curate.neighbours.cluster import ClusterSettings
from curate.retrieval import knn
from curate.retrieval.candidates import Candidates, load_candidates
from curate.retrieval.cluster import BELOW, FURTHER, OVER_CAP, POOR, take_from_clusters
from curate.retrieval.knn import deal, nearest_images
from curate.retrieval.question import Question
from curate.retrieval.ranks import rank_within
from curate.retrieval.settings import RetrieveSettings
from curate.retrieval.strategies import STRATEGIES, choose


@dataclass
class Here:
    """Runs units in this process, each once; `results` are by folder."""

    work: Path
    scratch: Path
    results: dict[Path, dict]

    def at_work(self, name):
        return nullcontext()

    def folder(self, stage):
        return self.work / stage.name / stage.address

    def use(self, place):
        pass

    def map(self, function, units, *, workers=None, done=0):
        raise NotImplementedError

    def run(self, place, function, units, **options):
        folders = [self.folder(place) / unit.name for unit in units]
        for unit, out in zip(units, folders, strict=True):
            if out not in self.results:
                out.mkdir(parents=True)
                self.results[out] = function(*unit.args, out=out)
        return [self.results[out] for out in folders]


class Asked:
    """A crawl and a seed, taken up to the candidates; `choose` gives the keys that are retrieved."""

    def __init__(self, work, crawl, seed, held=(), block=10**6, dim=4):
        self.work, self.block = work, block
        self.runner = Here(work, work, {})
        with blocks_of(block):
            self.crawl = made_collection(work, crawl, dim=dim)
            self.seed = made_collection(work, seed, name="seed", dim=dim)
            holdouts = [made_collection(work, held, name="held", dim=dim)] if held else []
            clusters, _ = clustered(self.crawl, work)
            groups, _ = grouped(self.crawl, clusters, work, 0.9999)
            folders = searched(self.crawl, groups, self.seed, holdouts, work, threshold=0.9999)
            self.folder = candidates_of(self.crawl, groups, *folders, work)
            self.numbers, self.similarity = load_candidates(self.folder)
            self.keys = self.crawl.keys(self.numbers)

    def choose(self, floor=-1.0, clusters=3, **asked):
        with blocks_of(self.block):
            question = Question(
                self.runner,
                *(Catalogued(x, [], c, x) for x, c in (("c", self.crawl), ("s", self.seed))),
                Candidates(self.folder, len(self.numbers), "k"),
                floor,
                ClusterSettings(clusters=clusters),
                1,
            )
            chosen = choose(question, RetrieveSettings(**asked))
        self.missed = np.load(chosen.folder / "missed.npy")
        self.misses = chosen.misses
        return [self.keys[row] for row in np.flatnonzero(self.missed == 0)]

    def cosines(self):
        """Return the cosines [seeds, candidates], both in the order of their keys."""
        images = self.seed.open_by_key
        return exact_cosines(self.seed.vectors(images), self.crawl.vectors(np.array(self.numbers)))


def drawn(vectors, name="p"):
    """Return images that come in no order of their keys."""
    order = np.random.default_rng(0).permutation(len(vectors))
    return [Made(f"{name}/{row:03d}", vectors[row]) for row in order]


def greedy(cosines, neighbours, floor=-1.0):
    """Deal images to seed images, the most similar pair first, one pair after another."""
    rounded = np.round(cosines, 6)
    pairs = [(-rounded[s, i], s, i) for s, i in np.argwhere(rounded >= floor)]
    owner, has = {}, np.zeros(len(cosines), int)
    for _, s, i in sorted(pairs):
        if i not in owner and has[s] < neighbours:
            owner[i] = s
            has[s] += 1
    return owner


def nearest(cosines, neighbours, floor=-1.0):
    """Return the nearest of each seed image, by definition."""
    found = set()
    for row in np.round(cosines, 6):
        order = np.lexsort((np.arange(len(row)), -row))[:neighbours]
        found |= {i for i in order.tolist() if row[i] >= floor}
    return found


CRAWL = clumps(0, 12, 10, 8, 0.4)
SEEDS = clumps(1, 8, 5, 8, 0.4)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return Asked(tmp_path_factory.mktemp("asked"), drawn(CRAWL), drawn(SEEDS, "s"), dim=8)


def test_the_registry_holds_every_strategy_that_can_be_named():
    field = RetrieveSettings.model_fields["strategy"]
    assert set(get_args(field.annotation)) == {*STRATEGIES, "auto"}


@pytest.mark.parametrize("collisions", ["once", "deeper"])
@pytest.mark.parametrize(("neighbours", "floor"), [(1, -1), (2, -1), (4, 0.5), (50, 0.3), (50, -1)])
def test_knn_is_that_of_brute_force(asked, neighbours, floor, collisions):
    found = asked.choose(
        floor, strategy="knn", knn={"neighbours": neighbours, "collisions": collisions}
    )
    reference = {"once": nearest, "deeper": greedy}[collisions]
    rows = reference(asked.cosines(), neighbours, floor)
    assert found == [asked.keys[row] for row in sorted(rows)]
    assert found
    best = asked.cosines().max(0)
    np.testing.assert_array_equal(asked.missed == 1, best < floor)


def test_small_blocks_small_units_and_many_passes_change_nothing(tmp_path, monkeypatch, asked):
    wanted = asked.choose(strategy="knn", knn={"neighbours": 2, "collisions": "deeper"})
    monkeypatch.setattr(knn, "BASE_ROWS", 7)
    monkeypatch.setattr(knn, "PAIRS", 9)
    parted = Asked(tmp_path, drawn(CRAWL)[::-1], drawn(SEEDS, "s")[::-1], block=11, dim=8)
    assert parted.choose(strategy="knn", knn={"neighbours": 2, "collisions": "deeper"}) == wanted
    searched = [out.name for out in parted.runner.results if out.name.startswith("search-")]
    assert len({name.split("-")[1] for name in searched}) > 1
    assert len(searched) > 10


def test_collisions_count_once_as_published_or_go_deeper(tmp_path):
    # Three seed images of one kind want the same two of six images; N is 2.
    def turned(degrees):
        return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0, 0]

    images = [Made(f"p/{row}", turned(12 * row)) for row in range(6)]
    seed = [Made(f"s/{row}", turned(-2 * row)) for row in range(3)]
    here = Asked(tmp_path, images, seed)
    once = here.choose(strategy="knn", knn={"neighbours": 2})
    assert once == ["p/0", "p/1"]
    assert here.misses[1] == "; not among the 2 nearest images of each seed image"
    deeper = here.choose(strategy="knn", knn={"neighbours": 2, "collisions": "deeper"})
    assert deeper == [f"p/{row}" for row in range(6)]
    assert len(deeper) == 2 * len(seed)
    assert here.choose(strategy="knn", knn={"neighbours": 9, "collisions": "deeper"}) == deeper


def test_seed_images_far_apart_bring_n_images_each(tmp_path):
    # The paper's arithmetic where nothing collides: N for each seed image.
    images = [
        Made(f"p/{d}{row}", np.eye(4)[d] + 0.1 * row * np.eye(4)[d - 1])
        for d in range(4)
        for row in range(5)
    ]
    here = Asked(tmp_path, images, [Made(f"s/{d}", np.eye(4)[d]) for d in range(4)])
    for neighbours in (1, 3, 4):
        for collisions in ("once", "deeper"):
            own = {"neighbours": neighbours, "collisions": collisions}
            found = here.choose(strategy="knn", knn=own)
            assert found == [f"p/{d}{row}" for d in range(4) for row in range(neighbours)]


def test_ties_go_to_the_first_key(tmp_path):
    images = [Made(f"p/{row}", np.eye(4)[0] + 0.5 * np.eye(4)[1 + row % 3]) for row in (2, 1, 0)]
    images.append(Made("p/9", np.eye(4)[3]))
    here = Asked(tmp_path, images, [Made(f"s/{row}", np.eye(4)[0]) for row in range(2)])
    assert here.choose(strategy="knn", knn={"neighbours": 1}) == ["p/0"]
    assert here.choose(strategy="knn", knn={"neighbours": 2}) == ["p/0", "p/1"]
    own = {"neighbours": 1, "collisions": "deeper"}
    assert here.choose(strategy="knn", knn=own) == ["p/0", "p/1"]


@pytest.mark.parametrize("strategy", ["threshold", "knn", "cluster"])
def test_copies_and_holdouts_are_no_candidates(tmp_path, strategy):
    images = [Made("p/0", np.eye(4)[0]), Made("p/copy", np.eye(4)[0], content="p/0")]
    images += [Made("p/held", np.eye(4)[1]), Made("p/broken", problem="broken")]
    images += [Made("p/far", np.eye(4)[2])]
    here = Asked(
        *(tmp_path, images, [Made("s/0", np.eye(4)[0]), Made("s/1", np.eye(4)[1])]),
        held=[Made("h/0", np.eye(4)[1])],
    )
    assert here.keys == ["p/0", "p/far"]
    own = {"cluster": {"more_than": 0}, "knn": {"neighbours": 1}}
    assert here.choose(0.5, strategy=strategy, **own) == ["p/0"]
    assert here.misses[here.missed[1] - 1] == " is below 0.5000"


def test_a_crawl_of_which_nothing_is_left_retrieves_nothing(tmp_path):
    here = Asked(
        tmp_path,
        [Made("p/0", np.eye(4)[0])],
        [Made("s/0", np.eye(4)[1])],
        held=[Made("h/0", np.eye(4)[0])],
    )
    for strategy in STRATEGIES:
        assert here.choose(strategy=strategy) == []


PAIRS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 6), st.sampled_from([0.1, 0.5, 0.9])),
    unique_by=lambda pair: pair[:2],
    max_size=35,
)


@settings(max_examples=200, deadline=None)
@given(PAIRS, st.integers(1, 3), st.randoms())
def test_dealing_is_greedy_whatever_the_order_of_the_pairs(pairs, neighbours, random):
    def dealt(pairs):
        columns = zip(*pairs, strict=True) if pairs else ((), (), ())
        seed, image, similarity = columns
        holds = deal(
            np.array(seed, np.int64),
            np.array(image, np.int64),
            np.array(similarity, np.float32),
            neighbours,
        )
        return {pair[:2] for pair, yes in zip(pairs, holds.tolist(), strict=True) if yes}

    cosines = np.full((5, 7), -2.0)
    for s, i, similarity in pairs:
        cosines[s, i] = similarity
    assert dealt(pairs) == {(s, i) for i, s in greedy(cosines, neighbours).items()}
    shuffled = random.sample(pairs, len(pairs))
    assert dealt(shuffled) == dealt(pairs)


@given(st.lists(st.integers(-2, 3)))
def test_ranks_are_counted_in_every_group(groups):
    counted = [groups[:place].count(group) for place, group in enumerate(groups)]
    assert rank_within(np.array(groups, np.int64)).tolist() == counted


def test_nearest_images_are_the_same_in_any_blocks():
    whole = nearest_images(SEEDS, [CRAWL], 9)
    for size in (1, 13, 119):
        parted = nearest_images(SEEDS, (CRAWL[at : at + size] for at in range(0, 120, size)), 9)
        np.testing.assert_array_equal(parted[0], whole[0])
        np.testing.assert_array_equal(parted[1], whole[1])
    assert nearest_images(SEEDS, [CRAWL[:5]], 9)[1].shape == (40, 5)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=25),
    st.lists(st.integers(0, 6), min_size=4, max_size=4),
    st.integers(1, 5),
    st.integers(0, 4),
    st.none() | st.integers(1, 9),
    st.randoms(),
)
def test_clusters_are_taken_from_as_defined(clusters, seeds_in, images, more_than, cap, random):
    rows = list(range(len(clusters)))
    order = random.sample(rows, random.randint(0, len(rows)))
    missed = take_from_clusters(
        *(np.array(clusters, np.int32), np.array(seeds_in, np.int64), np.array(order, np.int64)),
        *(images, more_than, cap),
    )
    expected, taken, total = dict.fromkeys(rows, BELOW), [0] * 4, 0
    for row in order:
        own = clusters[row]
        taken[own] += 1
        if seeds_in[own] <= more_than:
            expected[row] = POOR
        elif taken[own] > images:
            expected[row] = FURTHER
        elif cap is not None and total >= cap:
            expected[row] = OVER_CAP
        else:
            expected[row] = 0
            total += 1
    assert missed.tolist() == [expected[row] for row in rows]


def in_clumps():
    """Return 20 images about each of three directions, and 3, 4 and 5 seed images there."""
    rng = np.random.default_rng(0)
    images = [
        Made(f"p/{'abc'[d]}{row:02d}", np.eye(4)[d] + rng.normal(0, 0.1, 4))
        for d in range(3)
        for row in rng.permutation(20)
    ]
    seed = [
        Made(f"s/{d}{row}", np.eye(4)[d] + rng.normal(0, 0.05, 4))
        for d, count in enumerate((3, 4, 5))
        for row in range(count)
    ]
    return images, seed


@pytest.fixture(scope="module")
def clumped(tmp_path_factory):
    return Asked(tmp_path_factory.mktemp("clumped"), *in_clumps())


def similarity_of(asked):
    return dict(zip(asked.keys, np.round(asked.cosines().max(0), 6), strict=True))


def test_clusters_of_more_than_three_seed_images_bring_their_nearest(clumped):
    of = similarity_of(clumped)
    found = clumped.choose(strategy="cluster", cluster={"images": 6})
    wanted = []
    for name in "bc":  # three seed images are not more than three
        mine = sorted((key for key in of if key[2] == name), key=lambda key: (-of[key], key))
        wanted += mine[:6]
    assert found == sorted(wanted)
    poor = [key for key, code in zip(clumped.keys, clumped.missed, strict=True) if code == POOR]
    assert {key[2] for key in poor} == {"a"}
    assert len(poor) == 20


@pytest.mark.parametrize("cap", [1, 7, 12, 40])
def test_a_cap_takes_the_nearest_of_what_the_clusters_bring(clumped, cap):
    of = similarity_of(clumped)
    all_of_them = clumped.choose(strategy="cluster", cluster={"images": 6})
    found = clumped.choose(strategy="cluster", cluster={"images": 6, "cap": cap})
    assert found == sorted(sorted(all_of_them, key=lambda key: (-of[key], key))[:cap])
    assert len(found) == min(cap, 12)


def test_a_random_order_is_that_of_a_keyed_hash(clumped):
    found = clumped.choose(
        strategy="cluster", cluster={"images": 5, "order": "random", "seed": 7, "more_than": 4}
    )
    mine = [key for key in clumped.keys if key[2] == "c"]
    assert found == sorted(sorted(mine, key=lambda key: keyed_hash(key, 7))[:5])
    other = clumped.choose(
        strategy="cluster", cluster={"images": 5, "order": "random", "seed": 8, "more_than": 4}
    )
    assert other != found


def test_a_floor_holds_for_clusters_too(clumped):
    of = similarity_of(clumped)
    floor = float(np.median(list(of.values()))) + 1e-7
    found = clumped.choose(floor, strategy="cluster")
    assert found == sorted(key for key in of if of[key] >= floor and key[2] in "bc")


def test_the_number_of_clusters_is_a_setting_of_its_own(clumped):
    found = clumped.choose(strategy="cluster", cluster={"clusters": 1, "more_than": 11})
    assert found == clumped.keys
    assert not clumped.choose(strategy="cluster", cluster={"clusters": 1, "more_than": 12})


def test_blocks_and_arrival_change_nothing_of_clusters(tmp_path, clumped):
    images, seed = in_clumps()
    parted = Asked(tmp_path, images[::-1], seed[::-1], block=7)
    for order in ("nearest", "random"):
        own = {"images": 4, "order": order, "cap": 7}
        assert parted.choose(strategy="cluster", cluster=own) == clumped.choose(
            strategy="cluster", cluster=own
        )
