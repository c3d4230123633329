"""The stages as functions on arrays and folders: what they give is what a run gives."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import best_first, clear, clumps, deduped, exact_cosines, from_vectors
from pictures import encoded, picture
from test_strategies import Asked, drawn

from curate import dedup, embed, retrieve
from curate.catalogue.collection import Collection
from curate.dedup.near import DedupSettings
from shared.errors import LvdError

ROOT = Path(__file__).parents[2]
SHOWN = r"```python\n(from curate import .*?)```"


def greedy(cosines: np.ndarray, threshold: float, best: list[int]) -> list[int]:
    """Walk from best to worst: who has a better representative near joins the best of these."""
    stands: dict[int, int] = {}
    for row in best:
        near = [other for other in stands.values() if cosines[row, other] >= threshold]
        better = [other for other in best if other in near]
        stands[row] = better[0] if better else row
    return [stands[row] for row in range(len(best))]


def components(cosines: np.ndarray, threshold: float, best: list[int]) -> list[int]:
    """Join whatever is connected; the best of it stands for all."""
    place = {row: rank for rank, row in enumerate(best)}
    stands = list(range(len(best)))
    for _ in best:
        for row, other in np.argwhere(cosines >= threshold).tolist():
            stands[row] = min(stands[row], stands[other], key=place.__getitem__)
    return stands


@pytest.mark.parametrize(("mode", "reference"), [("greedy", greedy), ("components", components)])
@pytest.mark.parametrize("seed", [0, 1])
def test_groups_are_those_of_all_pairs_one_after_another(mode, reference, seed):
    vectors = clumps(seed, 6, 8, 6, 0.3).astype(np.float16)
    cosines = exact_cosines(vectors, vectors)
    threshold = clear(cosines, 0.95)
    best = np.random.default_rng(seed).permutation(len(vectors)).tolist()
    expected = reference(cosines, threshold, best)
    for per_image in (1, 64):
        found = dedup(vectors, threshold, groups=mode, best=best, edges_per_image=per_image)
        assert found.representative.tolist() == expected
    assert len(set(expected)) not in (1, len(expected))
    assert found.kept.tolist() == [row == stands for row, stands in enumerate(expected)]
    exact = cosines[np.arange(len(expected)), expected]
    np.testing.assert_allclose(found.similarity, exact, atol=1e-6)
    groups = found.members()
    assert sorted(row for rows in groups.values() for row in rows) == [
        row for row, stands in enumerate(expected) if expected.count(stands) > 1
    ]
    assert all(stands in rows and len(rows) > 1 for stands, rows in groups.items())


@pytest.mark.parametrize("mode", ["greedy", "components"])
def test_groups_are_those_of_the_stage(tmp_path, mode):
    vectors = clumps(3, 10, 12, 8, 0.3)
    crawl = from_vectors(tmp_path, vectors, dim=8)
    stored = crawl.vectors(np.arange(len(crawl)))
    threshold = clear(exact_cosines(stored, stored), 0.9)
    found = dedup(stored, threshold, groups=mode, best=best_first(crawl, tmp_path))
    expected = deduped(crawl, tmp_path, threshold, DedupSettings(groups=mode))
    assert found.representative.tolist() == expected.tolist()
    assert 1 < len(set(expected.tolist())) < len(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.randoms())
def test_the_order_of_the_rows_changes_no_group(seed, random):
    vectors = clumps(seed, 4, 5, 5, 0.3)
    order = list(range(len(vectors)))
    random.shuffle(order)
    plain = dedup(vectors, 0.9).representative
    mixed = dedup(vectors[order], 0.9, best=np.argsort(order)).representative
    assert [order[row] for row in mixed] == plain[order].tolist()


def test_what_has_no_vector_takes_no_part():
    vectors = np.array([[0, 0], [1, 0], [0, 0], [1, 0], [0, 1]], np.float32)
    found = dedup(vectors, -1.0)
    assert found.representative.tolist() == [-1, 1, -1, 1, 1]
    assert np.isnan(found.similarity[[0, 2]]).all()
    got = retrieve(vectors, vectors[[0, 1]], threshold=0.5)
    assert got.kept.tolist() == [False, True, False, True, False]
    assert got.nearest.tolist() == [[-1], [1], [-1], [1], [1]]
    none = np.empty((0, 2), np.float32)
    assert len(dedup(none, 0.5).kept) == len(retrieve(none, vectors, threshold=0.5).kept) == 0


STRATEGIES = [
    {"strategy": "threshold", "threshold": 0.5},
    {"strategy": "threshold", "target": 20},
    {"strategy": "threshold", "target": 0.25},
    {"strategy": "knn", "neighbours": 3},
    {"strategy": "knn", "neighbours": 2, "collisions": "deeper"},
    {"strategy": "knn", "neighbours": 4, "collisions": "deeper", "threshold": 0.6},
    {"strategy": "cluster", "images": 4, "more_than": 1, "clusters": 6},
    {"strategy": "cluster", "images": 9, "more_than": 0, "cap": 11, "threshold": 0.2},
]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    rng = np.random.default_rng(5)  # no copies: of these a run retrieves none
    crawl, seed = (rng.standard_normal((images, 8)) for images in (120, 30))
    return Asked(tmp_path_factory.mktemp("asked"), drawn(crawl), drawn(seed, "s"), dim=8)


@pytest.mark.parametrize("how", STRATEGIES, ids=json.dumps)
def test_what_is_retrieved_is_what_the_strategy_retrieves(asked, how):
    assert len(asked.numbers) == len(asked.crawl)
    vectors = asked.crawl.vectors(np.array(asked.numbers))
    seeds = asked.seed.vectors(asked.seed.open_by_key)
    found = retrieve(vectors, seeds, **how)
    strategy = how["strategy"]
    own = {k: v for k, v in how.items() if k not in ("strategy", "threshold", "target")}
    words = {strategy: own} if own else {}
    words |= {"target": how["target"]} if "target" in how else {}
    kept = asked.choose(how.get("threshold", -1.0), clusters="auto", strategy=strategy, **words)
    assert [asked.keys[row] for row in np.flatnonzero(found.kept)] == kept
    assert 0 < len(kept) < len(vectors)
    cosines = asked.cosines().T
    best = np.argsort(-np.round(cosines, 6), axis=1, kind="stable")[:, :5]
    assert (found.nearest == best).all()
    np.testing.assert_allclose(found.similarity, np.take_along_axis(cosines, best, 1), atol=1e-6)
    few = retrieve(vectors, seeds, **how, max_images=3, top_k=1)
    similar = sorted(np.flatnonzero(found.kept), key=lambda row: -few.similarity[row, 0])
    assert np.flatnonzero(few.kept).tolist() == sorted(similar[:3])


def test_a_folder_has_the_vectors_of_a_run_and_pictures_in_memory_too(small_run):
    found = embed(small_run.data / "crawl", "descriptor")
    run = json.loads((small_run.out / "run.json").read_text())
    address = run["datasets"]["crawl"]["content"]
    crawl = Collection(small_run.work / "catalogue" / address / "all")
    assert found.keys == crawl.keys(crawl.order[:])
    assert (found.vectors == crawl.vectors(crawl.order[:])).all()
    assert found.problems == {}


def test_what_cannot_be_decoded_has_zeros_and_a_reason(tmp_path):
    pictures = [picture(number) for number in range(3)]
    for number, one in enumerate(pictures):
        (tmp_path / f"{number}.png").write_bytes(encoded(one, "PNG"))
    (tmp_path / "cut.png").write_bytes(encoded(pictures[0], "PNG")[:60])
    found = embed(str(tmp_path), "descriptor")
    assert found.keys == ["0.png", "1.png", "2.png", "cut.png"]
    assert list(found.problems) == ["cut.png"]
    assert not found.vectors[3].any()
    mixed = [pictures[0], np.asarray(pictures[1]), pictures[2].convert("RGBA")]
    given_ = embed(mixed, "descriptor")
    assert (given_.vectors == found.vectors[:3]).all()
    assert (given_.keys, len(given_)) == (["0", "1", "2"], 3)
    assert embed([], "descriptor").vectors.shape == (0, found.vectors.shape[1])
    for folder, embedder in ((tmp_path / "no", "descriptor"), (tmp_path, "no such model")):
        with pytest.raises(LvdError, match="no"):
            embed(folder, embedder)


PLAIN = """
import sys
import curate
heavy = {"ray", "torch", "timm", "faiss", "numpy", "pyarrow"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
import curate.dedup.near
from curate import balance, dedup, embed, retrieve, top_up
assert curate.dedup is dedup and dedup.__module__ == "curate.api.deduplication"
import numpy as np
vectors = np.eye(4, dtype=np.float32)
dedup(vectors, 0.5), retrieve(vectors, vectors, threshold=0.5)
balance(vectors, 2), top_up(vectors[:1], vectors, 2)
assert not {"ray", "torch", "curate.execution", "curate.settings"} & set(sys.modules)
embed([np.zeros((40, 40, 3), np.uint8)], "descriptor")
assert "ray" not in sys.modules
wrong = [
    lambda: dedup(vectors[0], 0.5),
    lambda: balance(vectors, 2, held=np.ones(4)),
    lambda: balance(vectors, 2, held=np.ones(3, bool)),
    lambda: dedup(vectors.astype(int), 0.5),
    lambda: dedup(vectors * np.nan, 0.5),
    lambda: dedup(vectors, 1.5),
    lambda: dedup(vectors, 0.5, best=[0, 1, 2, 2]),
    lambda: dedup(vectors, 0.5, looks=0.1),
    lambda: dedup(vectors, 0.5, look_floor=0.1),
    lambda: dedup(vectors, 0.5, pictures=[], looks=0.1),
    lambda: dedup(vectors, 0.5, pictures=[], looks=2.0),
    lambda: dedup(vectors, 0.5, pictures=[], look_floor=0.5),
    lambda: dedup(vectors, 0.5, groups="all"),
    lambda: retrieve(vectors, vectors[:, :3], threshold=0.5),
    lambda: retrieve(vectors, 0 * vectors, threshold=0.5),
    lambda: retrieve(vectors, vectors),
    lambda: retrieve(vectors, vectors, threshold=0.5, target=3),
    lambda: retrieve(vectors, vectors, target=1.5),
    lambda: retrieve(vectors, vectors, threshold=0.5, neighbours=3),
    lambda: retrieve(vectors, vectors, strategy="knn", neighbors=3),
    lambda: retrieve(vectors, vectors, strategy="knn", target=3),
    lambda: retrieve(vectors, vectors, strategy="cluster", order="random"),
    lambda: retrieve(vectors, vectors, strategy="nearest"),
    lambda: retrieve(vectors, vectors, threshold=0.5, top_k=0),
    lambda: balance(vectors[0], 2),
    lambda: balance(vectors, 0),
    lambda: balance(vectors, 1.5),
    lambda: balance(vectors, 2, levels=[2, 2]),
    lambda: balance(vectors, 2, levels=[2, 3]),
    lambda: balance(vectors, 2, levels=[]),
    lambda: balance(vectors, 2, levels=[0]),
    lambda: balance(vectors, 2, resample=-1),
    lambda: balance(vectors, 2, iterations=0),
    lambda: balance(vectors, 2, draw="closest"),
    lambda: balance(vectors, 2, repeats=0),
    lambda: top_up(vectors[:, :3], vectors, 2),
    lambda: top_up(vectors, vectors[0], 2),
    lambda: top_up(vectors * np.nan, vectors, 2),
    lambda: top_up(vectors, vectors, 0),
    lambda: embed([np.zeros((40, 40), np.uint8)], "descriptor"),
    lambda: embed([np.zeros((40, 40, 3), np.float32)], "descriptor"),
]
for number, call in enumerate(wrong):
    try:
        call()
    except ValueError:
        continue
    raise AssertionError(number)
"""


def test_nothing_heavy_is_imported_before_it_is_needed_and_ray_never_is():
    done = subprocess.run([sys.executable, "-c", PLAIN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_docs_show_three_lines_that_work(tmp_path, monkeypatch):
    pages = [(ROOT / page).read_text() for page in ("README.md", "docs/curate.md")]
    [code] = {found for page in pages for found in re.findall(SHOWN, page, re.S)}
    assert all(code in page for page in pages)
    assert len([line for line in code.splitlines() if line]) == 3
    for name, numbers in (("crawl", range(6)), ("seed", range(4, 8))):
        (tmp_path / name).mkdir()
        for number in numbers:
            (tmp_path / name / f"{number}.png").write_bytes(encoded(picture(number), "PNG"))
    (tmp_path / "crawl" / "copy.png").write_bytes(encoded(picture(5), "PNG"))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    crawl, groups, found = (names[name] for name in ("crawl", "groups", "found"))
    assert crawl.keys == [*(f"{number}.png" for number in range(6)), "copy.png"]
    assert groups.representative[6] == 5
    assert groups.kept[4]
    rows = np.flatnonzero(groups.kept)
    assert found.kept[np.searchsorted(rows, [4, 5])].all()
