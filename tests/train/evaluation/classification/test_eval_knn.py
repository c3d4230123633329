import math

import numpy as np
import pytest
import torch
from clusters import dataset, relabelled
from hypothesis import given, settings
from hypothesis import strategies as st

import train.evaluation.classification.knn
from shared.errors import LvdError
from train.evaluation.classification.knn import knn
from train.evaluation.features import Bank
from train.evaluation.settings import KnnEvalSettings


def bank(features, labels):
    rows = torch.from_numpy(np.asarray(features)).half()
    return Bank([str(label) for label in labels], [f"{n:03d}" for n in range(len(rows))], rows)


def brute_force(voters, tested, k, temperature=0.07):
    """Score one query at a time in float64; ties go to the first rows, then the first class."""
    unit = torch.nn.functional.normalize(voters.pooled.double(), dim=1).numpy()
    queries = torch.nn.functional.normalize(tested.pooled.double(), dim=1).numpy()
    right = 0
    for query, label in zip(queries, tested.labels, strict=True):
        cosines = [float(row @ query) for row in unit]
        nearest = sorted(range(len(unit)), key=lambda n: (-cosines[n], n))[:k]
        votes = dict.fromkeys(sorted(set(voters.labels), key=int), 0.0)
        for n in nearest:
            votes[voters.labels[n]] += math.exp(cosines[n] / temperature)
        right += max(votes, key=votes.get) == label
    return right / len(queries)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_every_k_equals_brute_force_in_float64(temperature, monkeypatch):
    monkeypatch.setattr(train.evaluation.classification.knn, "QUERY_BLOCK", 7)
    rng = np.random.default_rng(0)
    voters = bank(rng.normal(size=(90, 6)), rng.integers(0, 4, 90))
    tested = bank(rng.normal(size=(50, 6)), rng.integers(0, 4, 50))
    some = (20, 1, 5, 60, 90, 200)
    scores = knn(voters, tested, KnnEvalSettings(k=some, temperature=temperature))
    expected = [brute_force(voters, tested, k, temperature) for k in some]
    assert [score.value for score in scores] == expected
    assert [score.setting for score in scores] == [f"k={k}" for k in some]
    assert len(set(expected)) > 1


# Entries of +-1 in a vector of 4, or one of 2, have the length 2: their cosines are exact.
EXACT = np.array([[a, b, c, d] for a in (1, -1) for b in (1, -1) for c in (1, -1) for d in (1, -1)])
EXACT = np.concatenate([EXACT, 2 * np.eye(4), -2 * np.eye(4)])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 23), st.integers(0, 3)), min_size=2, max_size=30),
    st.lists(st.tuples(st.integers(0, 23), st.integers(0, 3)), min_size=1, max_size=8),
    st.integers(1, 40),
)
def test_of_equally_near_voters_the_first_count(voting, asked, k):
    rows, labels = zip(*voting, strict=True)
    voters = bank(EXACT[list(rows)], [*labels[:-1], (labels[0] + 1) % 4])  # two classes at least
    tested = bank(EXACT[[row for row, _ in asked]], [label for _, label in asked])
    # Votes of exactly equal weights add up in another order: at 0.5 no rounding tells them apart.
    (score,) = knn(voters, tested, KnnEvalSettings(k=(k,), temperature=0.5))
    assert score.value == brute_force(voters, tested, k, 0.5)


def test_more_neighbours_than_there_are_images_are_said_and_all_vote():
    voters, tested = dataset(30, 1), dataset(20, 2)
    enough, all_of_them, too_many = knn(voters, tested, KnnEvalSettings(k=(10, 30, 200)))
    assert not enough.note
    assert not all_of_them.note
    assert too_many.note == "k=200 is more than the 30 images that vote: all do"
    assert too_many.value == all_of_them.value


def test_images_of_a_class_that_only_the_test_set_has_count_as_wrong():
    voters, tested = dataset(60, 1, spread=0.01), dataset(40, 2, spread=0.01)
    labels = ["class 9" if label == "class 1" else label for label in tested.labels]
    (score,) = knn(voters, relabelled(tested, labels), KnnEvalSettings(k=(3,)))
    assert score.value == 1 - labels.count("class 9") / 40
    assert f"{labels.count('class 9')} of 40 test images are of 1 classes" in score.note
    with pytest.raises(LvdError, match="one class only"):
        knn(relabelled(voters, ["cat"] * 60), tested, KnnEvalSettings())
