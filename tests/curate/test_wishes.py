"""What several seeds want, and negative ones bar, against the definition, one image after another."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import Made, exact_cosines, files_of, made_collection

from curate.filters.decisions import DECISIONS
from curate.retrieval.nearest_seeds import NearestSeeds, Retrieved
from curate.selection.decide import select
from curate.selection.wishes import OVER_BUDGET, Wish

COSINES = (0.1, 0.5, 0.9)


def wish(folder, similarity, codes, most=None, stays=frozenset()):
    """Write what a strategy leaves for one seed."""
    folder.mkdir()
    np.save(folder / "numbers.npy", np.arange(len(similarity)))
    np.save(folder / "similarity.npy", np.array(similarity, np.float32))
    np.save(folder / "exported.npy", np.array([i in stays for i in range(len(codes))]))
    np.save(folder / "missed.npy", np.array(codes, np.int8))
    return Wish(folder, folder, most)


def by_definition(wanted, barred, most, stays):
    """Decide image by image; return decisions, who wants whom, and counts of each seed.

    What `stays` comes first, and is kept in any case.
    """
    images = range(len(wanted[0][0]))
    out = {i for i in images if any(codes[i] == 0 for _, codes in barred)}
    wants = []
    for similarity, codes, budget in wanted:
        mine = [i for i in images if codes[i] == 0 and i not in out]
        mine.sort(key=lambda i: (i not in stays, -similarity[i], i))
        wants.append(set(mine[:budget]))
    best = {i: max(similarity[i] for similarity, _, _ in wanted) for i in images}
    everyone = sorted(set(stays).union(*wants), key=lambda i: (i not in stays, -best[i], i))
    decided = {}
    for i in images:
        if i in everyone[:most] or i in stays:
            decided[i] = "kept"
        elif i not in out and any(codes[i] == 0 for _, codes, _ in wanted):
            decided[i] = "over_budget"
        else:
            decided[i] = "irrelevant"
    alone = [sum(sum(i in other for other in wants) == 1 for i in mine) for mine in wants]
    return decided, wants, alone


@st.composite
def questions(draw):
    count = draw(st.integers(1, 8))
    similarity = st.lists(st.sampled_from(COSINES), min_size=count, max_size=count)
    codes = st.lists(st.sampled_from([0, 0, 1, 2]), min_size=count, max_size=count)
    budget = st.none() | st.integers(1, 4)
    wanted = draw(st.lists(st.tuples(similarity, codes, budget), min_size=1, max_size=3))
    barred = draw(st.lists(st.tuples(similarity, codes), max_size=2))
    return wanted, barred, draw(budget), draw(st.sets(st.integers(0, count - 1)))


@settings(max_examples=25, deadline=None)
@given(questions())
def test_decisions_are_those_of_the_definition(tmp_path_factory, question):
    wanted, barred, most, stays = question
    work = tmp_path_factory.mktemp("work")
    count = len(wanted[0][0])
    crawl = made_collection(work, [Made(f"p/{row}", np.eye(8)[row]) for row in range(count)], dim=8)
    places = np.random.default_rng(0).permutation(len(stays))
    np.save(crawl.folder / "exported.npy", np.stack([np.array(sorted(stays), int), places], 1))
    groups = work / "groups"
    groups.mkdir()
    np.save(groups / "representative.npy", np.arange(count))
    wishes = [wish(work / f"w{place}", *each, stays=stays) for place, each in enumerate(wanted)]
    bars = [wish(work / f"b{place}", *each) for place, each in enumerate(barred)]
    out = work / "out"
    out.mkdir()
    result = select(crawl, groups, None, wishes, bars, [], most, 0, out=out)
    decided, wants, alone = by_definition(wanted, barred, most, stays)
    found = [DECISIONS[code] for code in np.load(out / "decision.npy")]
    assert found == [decided[i] for i in range(count)]
    missed, bars_of = np.load(out / "missed.npy"), np.load(out / "barred.npy")
    for place, mine in enumerate(wants):
        own = (missed[place] == 0) & (bars_of < 0)
        assert set(np.flatnonzero(own).tolist()) == mine
        over = set(np.flatnonzero(missed[place] == OVER_BUDGET).tolist())
        assert (
            over == {i for i in range(count) if wanted[place][1][i] == 0 and bars_of[i] < 0} - mine
        )
    for i in range(count):
        first = [place for place, (_, codes) in enumerate(barred) if codes[i] == 0]
        assert bars_of[i] == (first[0] if first else -1)
    assert [each["retrieved"] for each in result["wanted"]] == [len(mine) for mine in wants]
    assert [each["alone"] for each in result["wanted"]] == alone
    assert [each["found"] for each in result["wanted"]] == [
        codes.count(0) for _, codes, _ in wanted
    ]
    assert [each["retrieved"] for each in result["barred"]] == [
        codes.count(0) for _, codes in barred
    ]
    assert sum(result["decisions"].values()) == count
    json.dumps(result)
    order = np.load(out / "order.npy")[: len(stays)]
    assert order.tolist() == [sorted(stays)[i] for i in np.argsort(places)]
    assert "order.npy" in files_of(out)


def test_the_nearest_images_over_several_seeds_are_those_of_all_of_them(tmp_path):
    rng = np.random.default_rng(0)
    images, near = np.arange(9), []
    vectors = rng.standard_normal((9, 4))
    sets = [rng.standard_normal((size, 4)) for size in (3, 1, 7)]
    sets[2][5] = sets[0][2]  # a tie, which goes to the first seed
    for place, seeds in enumerate(sets):
        seed = made_collection(
            tmp_path,
            [Made(f"s/{row}", vector) for row, vector in enumerate(seeds)],
            name=f"n{place}",
        )
        cosines = exact_cosines(vectors, seeds)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :4]
        folder = tmp_path / f"searched-{place}"
        folder.mkdir()
        np.save(folder / "numbers.npy", images)
        np.save(folder / "similarity.npy", np.take_along_axis(cosines, order, 1).astype(np.float32))
        np.save(folder / "seeds.npy", order)
        near.append(Retrieved(f"n{place}", seed, (folder,), str(place), seed.block))
    found = NearestSeeds(tuple(near), 4).find(images)
    pooled = exact_cosines(vectors, np.concatenate(sets)).astype(np.float32)
    best = np.argsort(-pooled, axis=1, kind="stable")[:, :4]
    starts = np.array([0, 3, 4])
    np.testing.assert_array_equal(starts[found.places] + found.images, best)
    np.testing.assert_array_equal(found.similarity, np.take_along_axis(pooled, best, 1))
    assert found.seen.all()
    keys = NearestSeeds(tuple(near), 4).keys(found.places[0], found.images[0]).to_pylist()
    assert keys == [f"s/{row}" for row in found.images[0]]
