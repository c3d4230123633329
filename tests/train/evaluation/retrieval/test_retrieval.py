import json
import pickle

import numpy as np
import pytest
import torch
from colour_model import ColourModel, joined
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import train.evaluation.retrieval.ranking
from shared.errors import LvdError
from train.evaluation.retrieval.ranking import (
    average_precision,
    positions_of,
    precision,
    rankings,
    retrieval,
)
from train.evaluation.retrieval.relevance import Relevance, read_benchmark
from train.evaluation.settings import RetrievalSettings


def area(relevant):
    """Return the area under precision over recall, trapezoid by trapezoid, down the whole list."""
    total, hits, last_recall, last_precision = sum(relevant), 0, 0.0, 1.0
    found = 0.0
    for rank, right in enumerate(relevant):
        hits += right
        recall, precise = hits / total, hits / (rank + 1)
        found += (recall - last_recall) * (last_precision + precise) / 2
        last_recall, last_precision = recall, precise
    return found


@settings(deadline=None)
@given(st.lists(st.sampled_from(["right", "wrong", "junk"]), max_size=30), st.randoms())
def test_average_precision_is_the_area_under_the_curve_without_junk(kinds, random):
    kinds.append("right")
    random.shuffle(kinds)
    order = list(range(len(kinds)))
    random.shuffle(order)
    rows = {kind: [row for row, at in enumerate(order) if kinds[at] == kind] for kind in set(kinds)}
    ranked = sorted(range(len(kinds)), key=lambda row: order[row])
    relevance = Relevance(np.array(rows["right"]), np.array(rows.get("junk", []), int))
    positions = positions_of(np.array(ranked), relevance)
    listed = [kind == "right" for kind in kinds if kind != "junk"]
    assert average_precision(positions) == pytest.approx(area(listed))
    depth = min(10, max(n for n, right in enumerate(listed) if right) + 1)
    assert precision(positions, 10) == pytest.approx(sum(listed[:depth]) / depth)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ([0], 1.0),
        ([0, 1, 2], 1.0),
        ([1], (0 / 1 + 1 / 2) / 2),
        ([0, 3], (1 + (1 / 3 + 2 / 4) / 2) / 2),
        ([9], (0 / 9 + 1 / 10) / 2),
    ],
)
def test_average_precision_of_lists_made_by_hand(positions, expected):
    assert average_precision(np.array(positions)) == pytest.approx(expected)


def test_rankings_are_those_of_brute_force_in_blocks_of_queries(monkeypatch):
    generator = np.random.default_rng(0)
    queries, gallery = (generator.normal(size=(n, 5)).astype(np.float32) for n in (23, 40))
    monkeypatch.setattr(train.evaluation.retrieval.ranking, "MOST_COSINES", 3 * 40 + 1)
    found = [order.tolist() for order in rankings(torch.tensor(queries), torch.tensor(gallery))]
    for query, order in zip(queries.astype(float), found, strict=True):
        cosines = [query @ v / np.linalg.norm(query) / np.linalg.norm(v) for v in gallery]
        assert order == sorted(range(40), key=lambda row: -cosines[row])
    monkeypatch.setattr(train.evaluation.retrieval.ranking, "MOST_COSINES", 1)
    assert [order.tolist() for order in rankings(torch.tensor(queries), torch.tensor(gallery))] == (
        found
    )


def test_equally_similar_images_are_ranked_as_the_gallery_has_them():
    gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]])
    (order,) = rankings(torch.tensor([[2.0, 0.0]]), gallery)
    assert order.tolist() == [1, 3, 0, 2, 4]


# Grey values 0 to 255 on red against blue: the nearer two values, the higher the cosine.
GALLERY = {"a": 100, "b": 110, "c": 130, "d": 160, "e": 200}
EASY_HARD_JUNK = {"easy": [1], "hard": [3], "junk": [0]}


def colour(path, value, size=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path, quality=100, subsampling=0)


def write_benchmark(root, queries, judged, gallery=GALLERY):
    for name, value in (gallery | queries).items():
        colour(root / f"jpg/{name}.jpg", value)
    truth = {"imlist": list(gallery), "qimlist": list(queries), "gnd": judged}
    (root / "gnd.json").write_text(json.dumps(truth))
    return str(root)


def scores(path, tmp_path, model=None, **options):
    model = model or joined(ColourModel())
    found = retrieval(model, str(path), RetrievalSettings(workers=1, **options), tmp_path / "cache")
    assert all(score.task == "retrieval" for score in found)
    return {(score.metric, score.setting): score.value for score in found}


def test_easy_medium_and_hard_judge_the_same_ranking(tmp_path):
    path = write_benchmark(tmp_path / "x", {"q": 100}, [EASY_HARD_JUNK])
    found = scores(path, tmp_path)  # the ranking is a b c d e; a is junk for all
    assert found["mAP", "easy"] == 1  # b, c, e: d is passed over
    assert found["mAP", "medium"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)  # b c d e
    assert found["mAP", "hard"] == pytest.approx((0 + 1 / 2) / 2)  # c d e: b is passed over
    assert found["mP@10", "medium"] == pytest.approx(2 / 3)
    assert found["mP@10", "hard"] == pytest.approx(1 / 2)
    path = write_benchmark(tmp_path / "y", {"q": 100}, [{"easy": [3], "hard": [1], "junk": [0]}])
    assert scores(path, tmp_path)["mAP", "easy"] == pytest.approx((0 + 1 / 2) / 2)  # c d e


def test_queries_without_positives_are_left_out_and_counted(tmp_path, capsys):
    lonely = {"easy": [], "hard": [0, 1], "junk": [2]}
    path = write_benchmark(tmp_path / "x", {"q": 100, "r": 100}, [EASY_HARD_JUNK, lonely])
    found = scores(path, tmp_path)
    assert found["mAP", "easy"] == 1
    assert found["mAP", "hard"] == pytest.approx((1 / 4 + 1) / 2)
    assert "1 of 2 queries have no positive (easy)" in capsys.readouterr().err
    path = write_benchmark(tmp_path / "y", {"q": 100}, [lonely])
    with pytest.raises(LvdError, match=r"no query in .* has a positive \(easy\)"):
        scores(path, tmp_path)


def test_queries_are_cut_to_their_boxes(tmp_path):
    path = write_benchmark(tmp_path / "x", {"q": 0}, [EASY_HARD_JUNK | {"bbx": [40.2, -3, 60, 32]}])
    colour(tmp_path / "x/jpg/q.jpg", 200, (64, 32))
    picture = Image.open(tmp_path / "x/jpg/q.jpg")
    picture.paste((110, 0, 145), (32, 0, 64, 32))
    picture.save(tmp_path / "x/jpg/q.jpg", quality=100, subsampling=0)
    assert scores(path, tmp_path)["mAP", "easy"] == 1
    assert scores(path, tmp_path, crop_queries=False)["mAP", "easy"] < 1


def test_images_that_are_broken_or_missing_are_in_no_ranking(tmp_path, capsys):
    judged = [EASY_HARD_JUNK | {"hard": [2, 3]}] * 3
    judged[2] = judged[2] | {"bbx": [500, 500, 600, 600]}
    path = write_benchmark(tmp_path / "x", {"q": 100, "r": 100, "s": 100}, judged)
    (tmp_path / "x/jpg/r.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "x/jpg/c.jpg").unlink()
    found = scores(path, tmp_path)
    assert found["mAP", "hard"] == 1  # d: c is gone, and is not one to be found
    said = capsys.readouterr().err
    assert "--data (queries): 2 images cannot be decoded" in said
    assert "--data (gallery): 1 images cannot be decoded" in said


def test_class_folders_are_a_benchmark_where_the_same_class_is_right(tmp_path):
    for name, value in {"cat/1": 100, "dog/2": 110, "cat/3": 130, "bird/4": 160}.items():
        colour(tmp_path / f"x/gallery/{name}.jpg", value)
    for name, value in {"cat/5": 95, "dog/6": 112, "fish/7": 5}.items():
        colour(tmp_path / f"x/queries/{name}.jpg", value)
    found = scores(tmp_path / "x", tmp_path)
    cat = (1 + (1 / 2 + 2 / 3) / 2) / 2
    assert found["mAP", "same class"] == pytest.approx((cat + 1) / 2)


def test_features_are_made_once_and_parts_weigh_alike(tmp_path):
    path = write_benchmark(tmp_path / "x", {"q": 100}, [EASY_HARD_JUNK])
    first, second = ColourModel(), ColourModel(scale=1000.0)
    alone = scores(path, tmp_path, joined(first))
    assert scores(path, tmp_path, joined(second, first)) == alone
    assert (first.seen, second.seen) == (6, 6)


def test_a_pickle_is_not_read_and_the_way_around_it_is_said(tmp_path):
    with (tmp_path / "gnd_roxford5k.pkl").open("wb") as stream:
        pickle.dump({"a": 1}, stream)
    with pytest.raises(LvdError, match="never read: if you trust it") as error:
        read_benchmark(str(tmp_path), True)
    said = str(error.value)
    assert "\n" not in said
    code = said.partition('python -c "')[2].removesuffix('"')
    compile(code, "said", "exec")
    assert "gnd_roxford5k.pkl" in code


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gnd": [{"easy": [9], "hard": [], "junk": []}]}, "names image 9"),
        ({"gnd": [{"easy": [-1], "hard": [], "junk": []}]}, "names image -1"),
        ({"gnd": []}, "0 entries of gnd"),
        ({"gnd": [{"ok": [1], "junk": []}]}, "gnd.0.easy"),
        ({"imlist": ["../../secret"]}, "outside of"),
        ({"imlist": 3}, "no ground truth"),
    ],
)
def test_a_ground_truth_that_is_not_one_is_an_error(tmp_path, change, said):
    path = write_benchmark(tmp_path / "x", {"q": 100}, [{"easy": [0], "hard": [], "junk": []}])
    file = tmp_path / "x/gnd.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(LvdError, match=said) as error:
        read_benchmark(path, True)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_benchmark_is_an_error(tmp_path):
    with pytest.raises(LvdError, match=r"no benchmark at .*: give a folder with gnd\.json"):
        read_benchmark(str(tmp_path), True)
    (tmp_path / "gnd.json").write_bytes(b"\xff{")
    with pytest.raises(LvdError, match="no ground truth"):
        read_benchmark(str(tmp_path), True)
