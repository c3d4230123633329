"""Copies below the threshold are joined by a look at their pixels, and nothing else is."""

from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from made_collection import (
    asked_for,
    clumps,
    clustered,
    exact_cosines,
    files_of,
    from_vectors,
    grouped,
    ranked,
)

from curate.api import deduplication
from curate.catalogue.collection import Catalogued
from curate.catalogue.originals import Originals
from curate.dedup import below, looks
from curate.dedup.bar import Bar
from curate.dedup.below import PAIRS, choose_pairs, find_pairs, set_floor
from curate.dedup.keep import NUMBER, RANK
from curate.dedup.looks import DIRECTLY, NOT, THROUGH
from curate.dedup.near import DedupSettings
from curate.dedup.stage import dedup
from curate.execution.session import open_runner
from curate.neighbours.cluster import ClusterSettings, cluster
from curate.stage import EngineSettings
from shared.config import validate

ALL = DedupSettings(probes=10**6, max_pair_share=1)
THRESHOLD, FLOOR = 0.93, 0.8


@pytest.mark.parametrize("bucket", [1, 10**9])
@pytest.mark.parametrize("most", [7, 10**6])
def test_the_pairs_are_the_most_similar_of_representatives(tmp_path, bucket, most):
    vectors = clumps(3, 15, 20, 12, 0.8)
    collection = from_vectors(tmp_path, vectors)
    clusters, _ = clustered(collection, tmp_path, ClusterSettings(clusters=20), bucket=bucket)
    groups, _ = grouped(collection, clusters, tmp_path, THRESHOLD, ALL)
    home = tmp_path / "looks"
    home.mkdir()
    ranks, found = ranked(collection, home), []
    asked = asked_for(clusters, home, FLOOR, ALL, groups)
    for first, last in clusters.ranges:
        found.append(home / f"below-{first}")
        found[-1].mkdir()
        bar = Bar(THRESHOLD, THRESHOLD)
        find_pairs(ranks, clusters, asked, first, last, FLOOR, bar, groups, 0, 1, out=found[-1])
    chosen = home / "chosen"
    chosen.mkdir()
    told = choose_pairs(ranks, found, most, most, out=chosen)

    rank, stands = np.load(ranks / RANK), np.load(groups / "representative.npy")
    best_first = [n for n in np.load(ranks / NUMBER).tolist() if stands[n] == n]
    exact, near = exact_cosines(vectors, vectors), []
    for place, worse in enumerate(best_first):
        better = [n for n in best_first[:place] if exact[worse, n] >= np.float32(FLOOR)]
        better.sort(key=lambda n: (-exact[worse, n], rank[n]))
        near += [
            (-exact[worse, n], rank[worse], rank[n], worse, n) for n in better[: below.NEAREST]
        ]
    expected = sorted(pair[3:] for pair in sorted(near)[:most])
    assert len(near) > 20
    assert told == {"pairs": len(expected), "near": len(near)}
    assert list(map(tuple, np.load(chosen / PAIRS).tolist())) == expected


def test_the_floor_follows_the_threshold_and_rises_where_it_is_crowded(tmp_path, monkeypatch):
    vectors = clumps(5, 40, 3, 24, 0.3)
    collection = from_vectors(tmp_path, vectors)
    np.save(tmp_path / "status.npy", np.ones(len(vectors), np.int8))

    def floor(threshold, **said):
        asked = ALL.model_copy(update=said)
        return set_floor(collection, tmp_path, threshold, asked, 1, out=tmp_path)["floor"]

    assert floor(0.8, looks=0.02) == pytest.approx(0.7)
    assert floor(0.92) == floor(0.97) == below.LOW == 0.5  # of few images
    with monkeypatch.context() as patch:
        patch.setattr(below, "FEW", len(vectors) - 1)
        assert floor(0.92) == pytest.approx(0.8)
    assert floor(0.8, look_floor=0.75) == 0.75
    assert floor(0.8, chain_floor=0.78) == 0.78
    raised = floor(0.8, look_floor=-1.0)
    exact = exact_cosines(vectors, vectors)
    reached = (np.sort(exact[~np.eye(len(exact), dtype=bool)]) >= raised).sum() / len(vectors)
    assert below.CROWDED - 1 <= reached <= below.CROWDED


def dedupe(work, vectors, says, patch, **said):
    """Return what dedup makes of vectors where `says` tells of two numbers if they are one picture."""
    crawl = Catalogued("crawl", [], from_vectors(work / "made", vectors), "0" * 16)
    patch.setattr(looks, "decode_pair", lambda originals, pair, _: pair)
    patch.setattr(looks, "is_clear_copy", says)
    asked = ALL.model_copy(update={"looks": 1.0, "look_floor": FLOOR, **said})
    with open_runner(work / "work", EngineSettings(), "inline") as runner:
        clusters = cluster(runner, crawl, ClusterSettings(), 1, None)
        found = dedup(runner, crawl, clusters, Bar(THRESHOLD, THRESHOLD), asked, 10**8, 1)
        ranks = found.groups.parent / "ranks"
    return crawl.collection, found, ranks


def one_in_three(one, other):
    return (one * 7 + other) % 3 == 0


@pytest.mark.parametrize("mode", ["greedy", "components"])
def test_what_a_look_confirms_joins_as_by_brute_force(tmp_path, monkeypatch, mode):
    vectors = clumps(3, 15, 20, 12, 0.8)
    said = dict(groups=mode, says=one_in_three, patch=monkeypatch)
    _, plain, _ = dedupe(tmp_path, vectors, looks=0.0, look_floor=None, **said)
    collection, found, _ = dedupe(tmp_path, vectors, **said)
    before, after = (np.load(each.groups / "representative.npy") for each in (plain, found))
    home = tmp_path / "ranks"
    home.mkdir()
    best_first = np.load(ranked(collection, home) / NUMBER).tolist()
    rank = {number: place for place, number in enumerate(best_first)}
    [pairs] = found.groups.parent.glob("chosen/pairs.npy")
    confirmed = [pair for pair in np.load(pairs).tolist() if one_in_three(*pair)]
    assert np.load(found.looked.confirmed).tolist() == confirmed
    stands = {number: number for number in best_first}
    if mode == "greedy":
        for number in best_first:
            better = [b for a, b in confirmed if a == number and stands[b] == b]
            stands[number] = min(better, key=rank.get, default=number)
    else:
        for _ in best_first:
            for pair in confirmed:
                best = min((stands[number] for number in pair), key=rank.get)
                stands |= dict.fromkeys(pair, best)
    expected = np.array([stands[number] for number in before.tolist()])
    assert (after == expected).all()
    told = np.load(found.looked.of_images)
    direct = {a for a, b in confirmed if stands[a] == b}
    for number, kind in enumerate(told.tolist()):
        moved = after[number] != before[number]
        assert kind == (DIRECTLY if number in direct else THROUGH if moved else NOT)
    assert {NOT, DIRECTLY, THROUGH} == set(told.tolist())
    assert found.looked.counts["joined"] == np.count_nonzero(told) > 10
    assert found.looked.counts["members"] == found.counts["members"]


def test_rounds_of_the_likeliest_pairs_go_on_while_these_pay(tmp_path, monkeypatch):
    vectors = clumps(3, 15, 20, 12, 0.8)
    images, exact = len(vectors), exact_cosines(vectors, vectors)
    assert below.budget("auto", 40) == below.budget("auto", images) == (200, 20)
    assert below.budget("auto", 10_000) == (2_000, 200)
    assert below.budget(0.02, 40) == (0, 0)
    monkeypatch.setattr(below, "FEWEST", 1)
    most, in_round = below.budget("auto", images)
    assert most == int(0.2 * images) > 6 * in_round > 0

    def looked(name, looks, says):
        asked = []
        tell = lambda *pair: asked.append(pair) or says(pair)  # noqa: E731
        _, found, _ = dedupe(tmp_path / name, vectors, tell, monkeypatch, looks=looks)
        counts = found.looked.counts
        assert counts["looked"] == len(asked)
        return asked, counts["confirmed"], found

    asked, confirmed, _ = looked("all", "auto", lambda pair: True)
    assert len(asked) == confirmed == most
    similar = [exact[pair] for pair in asked]
    rounds = [similar[at : at + in_round] for at in range(0, most, in_round)]
    assert all(min(one) >= max(other) for one, other in pairwise(rounds))
    copies = set(asked[: 2 * in_round + ceil(below.PAYS * in_round)])
    some, confirmed, found = looked("some", "auto", copies.__contains__)
    assert (len(some), confirmed) == (4 * in_round, len(copies))  # the fourth confirms none
    again, _, same = looked("again", "auto", copies.__contains__)
    assert again == some
    assert files_of(same.groups) == files_of(found.groups)
    assert len(looked("none", "auto", lambda pair: False)[0]) == in_round
    assert len(looked("number", 0.05, lambda pair: False)[0]) == int(0.05 * images)


def test_a_round_follows_one_that_confirmed_one_in_twenty_in_runs_and_in_python(monkeypatch):
    def looked(confirmed, pairs=100, in_round=20):
        rounds = []
        count = lambda first, last: rounds.append((first, last)) or confirmed[len(rounds) - 1]  # noqa: E731
        return below.look_while_it_pays(pairs, in_round, count), rounds

    assert looked([1, 1, 0, 9]) == (60, [(0, 20), (20, 40), (40, 60)])
    assert looked([20, 1, 1], 45) == (45, [(0, 20), (20, 40), (40, 45)])
    assert looked([], 0) == (0, [])

    monkeypatch.setattr(below, "PAYS", 1.0)
    grey = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    vectors, asked = clumps(1, 50, 1, 12, 0.8), []
    judged = lambda one, other: bool(asked.append(1))  # noqa: E731
    monkeypatch.setattr(deduplication, "is_clear_copy", judged)
    deduplication.dedup(vectors, 0.9, pictures=list(grey), look_floor=-1.0)
    assert len(asked) == below.FEWEST  # of some 80 pairs, two of each image


def test_without_looks_nothing_is_read_and_with_none_confirmed_nothing_changes(
    tmp_path, monkeypatch
):
    vectors = clumps(4, 10, 12, 12, 0.8)
    monkeypatch.setattr(Originals, "read", lambda *_: pytest.fail("an original was read"))
    never = lambda *_: False  # noqa: E731
    _, off, _ = dedupe(tmp_path / "a", vectors, never, monkeypatch, looks=0.0, look_floor=None)
    _, none, _ = dedupe(tmp_path / "b", vectors, never, monkeypatch)
    assert off.looked is None
    assert none.looked.counts["looked"] > 10
    assert none.looked.counts["confirmed"] == none.looked.counts["joined"] == 0
    assert off.counts == none.counts
    for name in ("representative.npy", "grouped.npy", "status.npy"):
        assert (off.groups / name).read_bytes() == (none.groups / name).read_bytes()


def test_what_an_earlier_result_exported_still_stands_for_itself(tmp_path, monkeypatch):
    vectors = clumps(3, 15, 20, 12, 0.8)
    made = from_vectors
    exported = made(tmp_path / "old", vectors)
    keys = exported.keys(np.arange(0, len(vectors), 2))
    stay = np.array([exported.find(key) for key in keys])
    monkeypatch.setattr(
        type(exported), "exported", property(lambda _: np.stack([stay, stay * 0], 1))
    )
    _, found, _ = dedupe(tmp_path, vectors, lambda *_: True, monkeypatch)
    stands = np.load(found.groups / "representative.npy")
    assert (stands[stay] == stay).all()
    assert found.looked.counts["joined"] > 0


def test_a_run_that_was_killed_looks_only_at_what_is_left(tmp_path, monkeypatch):
    vectors = clumps(3, 15, 20, 12, 0.8)
    monkeypatch.setattr(looks, "_TOGETHER", 5)
    _, whole, _ = dedupe(tmp_path / "a", vectors, one_in_three, monkeypatch)
    calls = []

    def fall(one, other):
        calls.append((one, other))
        if len(calls) == 12:
            raise KeyboardInterrupt
        return one_in_three(one, other)

    with pytest.raises(KeyboardInterrupt):
        dedupe(tmp_path / "b", vectors, fall, monkeypatch)
    _, found, _ = dedupe(tmp_path / "b", vectors, fall, monkeypatch)
    assert len(calls) == whole.looked.counts["looked"] + 2  # of the block that was lost
    assert files_of(found.groups) == files_of(whole.groups)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"looks": 0, "look_floor": 0.5}, "looks: 0"),
        ({"threshold": 0.8, "look_floor": 0.8}, "not below the threshold"),
    ],
)
def test_looks_that_make_no_sense_are_refused_in_one_line(said, names):
    with pytest.raises(Exception, match=names) as error:
        validate(DedupSettings, said, file="pipelines.yaml")
    assert str(error.value).count("\n") == 0
