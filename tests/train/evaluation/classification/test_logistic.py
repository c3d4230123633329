import warnings

import pytest
import torch
from clusters import dataset, relabelled
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from train.evaluation.classification.logistic import logistic
from train.evaluation.settings import LogregSettings


def regression(train, test, **options):
    (score,) = logistic(train, test, LogregSettings(**options))
    assert (score.task, score.metric, score.higher_is_better) == ("logreg", "top-1", True)
    return score


def test_separable_features_are_told_apart():
    score = regression(dataset(300, 1, spread=0.1), dataset(100, 2, spread=0.1))
    assert score.value >= 0.98
    assert not score.note


def test_random_labels_stay_near_chance():
    labels = torch.randint(4, (900,), generator=torch.Generator().manual_seed(0)).tolist()
    train = relabelled(dataset(500, 1), [str(n) for n in labels[:500]])
    test = relabelled(dataset(400, 2), [str(n) for n in labels[500:]])
    assert abs(regression(train, test).value - 1 / 4) < 0.1


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_the_score_is_that_of_scikit_learns_own_fit(c):
    train, test = dataset(300, 1, spread=2), dataset(300, 2, spread=2)
    score = regression(train, test, c=(c,))
    scaler = StandardScaler().fit(train.pooled.double())
    own = LogisticRegression(C=c, tol=1e-6, max_iter=1000)
    own.fit(scaler.transform(train.pooled.double()), train.labels)
    expected = own.score(scaler.transform(test.pooled.double()), test.labels)
    assert score.value == pytest.approx(expected, abs=1 / 300)
    assert score.setting == f"C={c:g}"


def test_of_equally_good_strengths_the_strongest_penalty_is_chosen():
    train, test = dataset(300, 1, spread=0.01), dataset(10, 2, spread=0.01)
    assert regression(train, test, c=(1.0, 0.1, 10.0)).setting == "C=0.1"


def test_what_is_chosen_does_not_depend_on_what_is_reported():
    train, test = dataset(300, 1, spread=2), dataset(100, 2, spread=2)
    chosen = regression(train, test)
    others = relabelled(test, test.labels[::-1]), relabelled(test, ["elsewhere"] * 100)
    shuffled, foreign = (regression(train, other) for other in others)
    assert chosen.setting == shuffled.setting == foreign.setting
    assert chosen.value > shuffled.value > foreign.value == 0


def test_a_fit_that_stops_short_is_a_note_and_no_warning():
    train, test = dataset(300, 1, spread=2), dataset(100, 2, spread=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = regression(train, test, max_iter=1, c=(1.0, 10.0))
    assert score.note == "L-BFGS stopped at 1 iterations, not converged"
    assert score.value > 0.5


def test_no_more_training_images_are_fitted_than_allowed():
    train, test = dataset(300, 1, spread=2), dataset(100, 2, spread=2)
    score = regression(train, test, max_images=50)
    assert score.note == "fitted on 50 of 300 training images, drawn at random"
    assert score == regression(train, test, max_images=50)
    assert not regression(train, test, max_images=300).note


def test_images_of_a_class_that_only_the_test_set_has_count_as_wrong():
    train, test = dataset(300, 1, spread=0.1), dataset(100, 2, spread=0.1)
    labels = ["class 9" if label == "class 1" else label for label in test.labels]
    score = regression(train, relabelled(test, labels))
    assert score.value == pytest.approx(1 - labels.count("class 9") / 100, abs=0.02)
    assert f"{labels.count('class 9')} of 100 test images" in score.note


def test_a_feature_that_never_changes_in_training_changes_nothing():
    train, test = dataset(300, 1, spread=1), dataset(100, 2, spread=1)
    plain = regression(train, test)
    for bank, value in ((train, torch.full((300, 1), 3.0)), (test, torch.rand(100, 1) * 3)):
        bank.pooled = torch.cat([bank.pooled, value.half()], dim=1)
    assert regression(train, test).value == plain.value
