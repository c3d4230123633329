"""Every image gets the first decision that applies, and the kept ones an order of their own."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import (
    Made,
    blocks_of,
    candidates_of,
    chosen_by_threshold,
    clustered,
    exact_cosines,
    files_of,
    grouped,
    made_collection,
    searched,
)

from curate.catalogue.keyed_order import keyed_hash
from curate.filters.decisions import DECISIONS
from curate.filters.quality import QualitySettings
from curate.filters.scores import FilterSettings
from curate.neighbours.search import cosine, unit
from curate.selection.decide import select
from curate.selection.wishes import Wish

DEDUP, RETRIEVE = 0.95, 0.6
FILTERS = [FilterSettings(column="nsfw", max=0.5)]
DIRECTIONS = np.eye(8)


def toward(direction, away=0.0, other=7):
    """Return a vector near one of eight directions."""
    return DIRECTIONS[direction] + away * DIRECTIONS[other]


def selected(
    work,
    images,
    seeds,
    held=(),
    *,
    most=None,
    target=None,
    seed=0,
    filters=FILTERS,
    block=10**6,
    threshold=RETRIEVE,
):
    """Return the decision of every key, the kept keys in order, and the folder."""
    images = [Made(**{**vars(image), "scores": {"nsfw": 0.1, **image.scores}}) for image in images]
    with blocks_of(block):
        crawl = made_collection(work, images, quality=QualitySettings(), filters=filters, dim=8)
        known = made_collection(work, seeds, name="seed", dim=8)
        holdouts = [made_collection(work, held, name="held", dim=8)] if held else []
        clusters, _ = clustered(crawl, work)
        groups, _ = grouped(crawl, clusters, work, DEDUP)
        folders = searched(crawl, groups, known, holdouts, work, threshold=DEDUP)
        out = work / f"select-{len(list(work.glob('select-*')))}"
        out.mkdir()
        found = candidates_of(crawl, groups, *folders, work)
        chosen, reached = chosen_by_threshold(found, threshold, target, work)
        wishes = [Wish(found, chosen, None)]
        result = select(crawl, groups, folders[0], wishes, [], [], most, seed, out=out) | reached
        counts = result["decisions"]
        keys = crawl.keys(np.arange(len(crawl)))
    decision = np.load(out / "decision.npy")
    order, position = np.load(out / "order.npy"), np.load(out / "position-0.npy")
    (out / "result.json").write_text(json.dumps(result))
    assert sum(counts.values()) == len(images)
    assert counts == {name: int((decision == code).sum()) for code, name in enumerate(DECISIONS)}
    assert position[order].tolist() == list(range(len(order)))
    assert (position >= 0).sum() == len(order)
    decided = {key: DECISIONS[code] for key, code in zip(keys, decision, strict=True)}
    kept = [keys[number] for number in order]
    assert sorted(kept) == [key for key, name in decided.items() if name == "kept"]
    return decided, kept, out


SEED = [Made("s/0", toward(0)), Made("s/1", toward(1))]


def test_the_first_decision_that_applies_is_taken(tmp_path):
    decided, _, _ = selected(
        tmp_path,
        [
            Made("p/corrupt", toward(5), problem="broken", scores={"nsfw": 0.9}),
            Made("p/unsafe", toward(5), (1, 1), scores={"nsfw": 0.9}),
            Made("p/small", toward(5), (1, 99)),
            Made("p/held", toward(5)),
            Made("p/held-copy", toward(5, 0.1), (32, 32)),
            Made("p/kept", toward(0)),
            Made("p/copy", toward(0, 0.1), (32, 32)),
            Made("p/far", toward(3)),
            Made("p/far-copy", toward(3), (32, 32)),
            Made("p/less", toward(1, 0.9)),
        ],
        SEED,
        [Made("h/0", toward(5))],
        most=1,
    )
    assert decided == {
        "p/corrupt": "corrupt",
        "p/unsafe": "unsafe",
        "p/small": "low_quality",
        "p/held": "holdout",
        "p/held-copy": "holdout",
        "p/kept": "kept",
        "p/copy": "duplicate",
        "p/far": "irrelevant",
        "p/far-copy": "duplicate",
        "p/less": "over_budget",
    }


@pytest.mark.parametrize("held", [-30, 0, 30])
def test_a_hit_of_any_member_drops_the_whole_group(tmp_path, held):
    # A holdout image 30 degrees off is a copy of the member at 17 degrees, and of nothing else.
    def turned(degrees):
        return np.cos(np.radians(degrees)) * toward(0) + np.sin(np.radians(degrees)) * toward(2)

    images = [Made("p/0", turned(0), (90, 90)), Made("p/1", turned(17)), Made("p/2", turned(-17))]
    images += [Made("p/copy-of-1", turned(17), content="p/1"), Made("p/other", toward(1))]
    decided, kept, _ = selected(tmp_path, images, SEED, [Made("h/0", turned(held))])
    assert {name for key, name in decided.items() if key != "p/other"} == {"holdout"}
    assert kept == ["p/other"]


def test_the_threshold_is_inclusive(tmp_path):
    vector = np.array([0.3, 0.7, 0.1, 0, 0, 0, 0, 0.2])
    own = cosine(*(unit(np.float16([x])) for x in (vector, toward(1))))[0]
    above = np.nextafter(own, np.float32(2))
    for threshold, expected in [(own, "kept"), (above, "irrelevant")]:
        image = Made("p/0", vector)
        decided, _, _ = selected(tmp_path, [image], SEED, threshold=float(threshold))
        assert decided == {"p/0": expected}


def test_the_budget_keeps_the_most_similar_and_breaks_ties_by_key(tmp_path):
    images = [Made(f"p/{row}{name}", toward(0, 0.5, 2 + row)) for row in range(4) for name in "b"]
    images += [Made("p/best", toward(1)), Made("p/a", toward(0, 0.5, 6)), Made("p/far", toward(3))]
    for most, kept in [
        (1, {"p/best"}),
        (3, {"p/best", "p/0b", "p/1b"}),
        (5, {"p/best", "p/0b", "p/1b", "p/2b", "p/3b"}),
        (6, {"p/best", "p/0b", "p/1b", "p/2b", "p/3b", "p/a"}),
        (99, {"p/best", "p/0b", "p/1b", "p/2b", "p/3b", "p/a"}),
    ]:
        decided, order, _ = selected(tmp_path, images, SEED, most=most)
        assert set(order) == kept
        assert decided["p/far"] == "irrelevant"
        assert list(decided.values()).count("over_budget") == 6 - len(kept)


def test_a_holdout_image_uses_up_no_budget(tmp_path):
    images = [Made("p/0", toward(0)), Made("p/1", toward(1, 0.5))]
    decided, _, _ = selected(tmp_path, images, SEED, [Made("h/0", toward(0))], most=1)
    assert decided == {"p/0": "holdout", "p/1": "kept"}


@pytest.mark.parametrize(
    ("target", "most", "kept", "over", "threshold"),
    [
        (1, None, ["p/best"], 0, 1.0),
        (3, None, ["p/best", "p/t0", "p/t1"], 0, 0.8944),
        (0.5, None, ["p/best", "p/t0", "p/t1"], 0, 0.8944),
        (4, 2, ["p/best", "p/t0"], 2, 0.8944),
        (4, 9, ["p/best", "p/t0", "p/t1", "p/t2"], 0, 0.8944),
        (99, None, ["p/best", "p/far", "p/t0", "p/t1", "p/t2", "p/t3"], 0, 0.0),
    ],
)
def test_a_target_is_met_exactly_whatever_ties(tmp_path, target, most, kept, over, threshold):
    # A threshold of 2 would keep nothing: a target has no use for it.
    images = [Made(f"p/t{row}", toward(0, 0.5, 2 + row)) for row in (3, 1, 0, 2)]
    images += [Made("p/best", toward(1)), Made("p/far", toward(6)), Made("p/held", toward(5))]
    held = [Made("h/0", toward(5))]
    decided, order, out = selected(
        tmp_path, images, SEED, held, target=target, most=most, threshold=2
    )
    assert sorted(order) == kept
    assert list(decided.values()).count("over_budget") == over
    assert decided["p/held"] == "holdout"
    result = json.loads((out / "result.json").read_text())
    assert result["threshold"] == pytest.approx(threshold, abs=1e-4)
    assert result["target"] == (3 if target == 0.5 else target)


def test_the_order_depends_on_no_other_image_and_on_the_seed(tmp_path):
    images = [Made(f"p/{row:02d}", toward(row % 2, row / 50, 2 + row % 6)) for row in range(40)]
    apart = [image for image in images if image.key < "p/12"]
    first = selected(tmp_path, images, SEED)[1]
    fewer = selected(tmp_path, apart, SEED)[1]
    other = selected(tmp_path, images, SEED, seed=1)[1]
    assert [key for key in first if key in fewer] == [key for key in fewer if key in first]
    assert first == sorted(first, key=lambda key: keyed_hash(key, 0))
    assert other == sorted(other, key=lambda key: keyed_hash(key, 1))
    assert sorted(first) == sorted(other)
    assert first != other


def test_a_keyed_hash_is_the_same_for_ever():
    assert keyed_hash("00000/a", 0) == keyed_hash("00000/a", 0) != keyed_hash("00000/a", 1)
    assert keyed_hash("00000/a", 0) == 4336390878947240665
    assert 0 <= keyed_hash("é", 10**30) < 2**64


IMAGES = st.lists(
    st.builds(
        Made,
        key=st.sampled_from([f"{part}/{row}" for part in "ab" for row in range(20)]),
        vector=st.none()
        | st.tuples(*8 * [st.sampled_from([0, 0, 0, 1, 1.5])]).filter(lambda v: any(v)),
        size=st.sampled_from([(64, 64), (64, 80), (20, 64)]),
        content=st.none() | st.sampled_from(["x", "y"]),
        problem=st.sampled_from(["", "", "", "broken"]),
        scores=st.fixed_dictionaries({"nsfw": st.sampled_from([0.1, 0.1, 0.9, None])}),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda image: image.key,
).filter(lambda images: any(image.vector for image in images))


@settings(max_examples=25, deadline=None)
@given(
    IMAGES,
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 6) | st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.sampled_from([1, 5, 10**6]),
)
def test_decisions_are_those_of_the_definition(tmp_path_factory, images, most, target, block):
    work = tmp_path_factory.mktemp("work")
    # the same bytes give the same vector, and are of one size
    first = {image.sha256: {"vector": image.vector, "size": image.size} for image in images[::-1]}
    images = [Made(**{**vars(image), **first[image.sha256]}) for image in images]
    held = [Made("h/0", toward(4))]
    filters = FILTERS if any(image.scores["nsfw"] is not None for image in images) else []
    options = {"most": most, "target": target, "filters": filters}
    decided, _, folder = selected(work, images, SEED, held, block=block, **options)
    again = selected(work, images[::-1], SEED, held, **options)[2]
    assert files_of(folder) == files_of(again)
    assert decided == reference(images, held, most, target, filters)


def reference(images, held, most, target, filters):
    """Decide by the definitions, one image after another."""
    decided, stands, similarity = {}, {}, {}
    images = sorted(images, key=lambda i: (-i.size[0] * i.size[1], -i.nbytes, i.key))
    best = []
    canonical = {}
    for image in sorted(images, key=lambda image: image.key):
        score = image.scores["nsfw"]
        if image.problem:
            decided[image.key] = "corrupt"
        elif filters and (score is None or score > 0.5):
            decided[image.key] = "unsafe"
        elif min(image.size) < 32 or image.vector is None:
            decided[image.key] = "low_quality"
        else:
            stands[image.key] = canonical.setdefault(image.sha256, image.key)

    def near_by(a, b):
        return exact_cosines(np.array([a.vector]), np.array([b.vector]))[0, 0]

    for image in images:
        if stands.get(image.key) == image.key:
            near = [b for b in best if near_by(image, b) >= DEDUP]
            stands[image.key] = near[0].key if near else image.key
            best += [] if near else [image]
    stands = {key: stands[canon] for key, canon in stands.items()}
    by_key = {image.key: image for image in images}
    dropped = {key for key in stands for other in held if near_by(by_key[key], other) >= DEDUP}
    before = -1
    while before < len(dropped):
        before = len(dropped)
        dropped |= {a for a in stands for b in dropped if near_by(by_key[a], by_key[b]) >= DEDUP}
    for key, own in stands.items():
        similarity[key] = max(near_by(by_key[key], seed) for seed in SEED)
        if key in dropped:
            decided[key] = "holdout"
        elif own != key:
            decided[key] = "duplicate"
        else:
            decided[key] = "kept" if similarity[key] >= RETRIEVE else "irrelevant"
    ranked = [key for key, name in decided.items() if name in ("kept", "irrelevant")]
    ranked.sort(key=lambda key: (-np.round(similarity[key], 6), key))
    if target is not None:
        share = isinstance(target, float)
        count = max(1, round(target * len(ranked))) if share else target
        decided |= dict.fromkeys(ranked, "irrelevant") | dict.fromkeys(ranked[:count], "kept")
    kept = [key for key in ranked if decided[key] == "kept"]
    for key in kept[most:] if most else []:
        decided[key] = "over_budget"
    return decided
