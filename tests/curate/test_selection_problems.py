"""A run says in one line that its target was missed, or that its threshold sorts nothing out."""

import pytest
from pydantic import ValidationError

from curate.retrieval.settings import RetrieveSettings
from curate.selection.problems import (
    barred_problems,
    dropped_problems,
    lift_problems,
    selection_problems,
)


def counts(kept: int = 0, over_budget: int = 0, irrelevant: int = 0) -> tuple[int, int]:
    """Return how many images are relevant, and how many could be."""
    return kept + over_budget, kept + over_budget + irrelevant


@pytest.mark.parametrize(
    ("decisions", "word"),
    [
        ({"kept": 960, "irrelevant": 40}, "nearly all"),
        ({"kept": 10, "over_budget": 950, "irrelevant": 40}, "nearly all"),
        ({"kept": 950, "irrelevant": 50}, None),
        ({"kept": 10, "irrelevant": 990}, None),
        ({"kept": 9, "irrelevant": 991}, "nearly no"),
        ({"irrelevant": 20}, "nearly no"),
        ({"irrelevant": 19}, None),
        ({"kept": 5}, None),
    ],
)
def test_a_threshold_that_sorts_nothing_out_is_told_with_the_remedy(decisions, word):
    found = selection_problems(*counts(**decisions), 0.3172, None)
    assert len(found) == (word is not None)
    for line in found:
        assert word in line
        assert f"{'higher' if word == 'nearly all' else 'lower'} than 0.3172" in line
        for setting in ("retrieve.threshold", "retrieve.target", "retrieve.embedder"):
            assert setting in line


@pytest.mark.parametrize(
    ("decisions", "told"),
    [
        ({"unsafe": 96, "kept": 4}, "lists"),
        ({"low_quality": 20}, "quality"),
        ({"unsafe": 95, "kept": 5}, None),
        ({"unsafe": 48, "low_quality": 48, "kept": 4}, None),
        ({"unsafe": 19}, None),
        ({"corrupt": 96, "kept": 4}, None),
    ],
)
def test_filters_that_drop_nearly_all_are_told_with_where_they_stand(decisions, told):
    counted = {"unsafe": 0, "low_quality": 0, **decisions}
    found = dropped_problems(counted)
    assert len(found) == (told is not None)
    for line in found:
        most = max(decisions, key=decisions.__getitem__)
        assert line.startswith(f"{decisions[most]} of {sum(decisions.values())} images are {most}")
        assert told in line


@pytest.mark.parametrize(
    ("seed_share", "crawl_share", "told"),
    [(0.9, 0.8, True), (0.9, 0.7, False), (0.9, 0.1, False), (0.9, 0.96, False), (0, 0, False)],
)
def test_a_measured_threshold_that_hardly_chooses_is_told_with_both_shares(
    seed_share, crawl_share, told
):
    found = lift_problems(seed_share, crawl_share, 0.6488, "seeds.cats")
    assert len(found) == told
    for line in found:
        for said in ("0.6488", "90%", "80%", "seeds.cats.target", "retrieve.embedder"):
            assert said in line


def test_who_asks_for_all_gets_no_warning():
    assert not selection_problems(*counts(kept=1000), -1, None)


def test_a_shortfall_is_told_and_a_target_that_is_met_is_not():
    assert not selection_problems(*counts(kept=980, irrelevant=20), 0.1, 980)
    assert not selection_problems(*counts(kept=9, over_budget=1), 0.1, 10)
    [line] = selection_problems(*counts(kept=980), 0.1, 2000)
    assert "2,000" in line
    assert "980" in line


@pytest.mark.parametrize(
    ("strategy", "decisions", "word", "remedies"),
    [
        ("knn", {"kept": 9, "irrelevant": 9991}, None, []),
        ("knn", {"kept": 96, "irrelevant": 4}, "nearly all", ["retrieve.knn.neighbours"]),
        ("knn", {"irrelevant": 5}, "none", ["retrieve.threshold"]),
        ("cluster", {"irrelevant": 5}, "none", ["retrieve.cluster.clusters", "more_than"]),
        ("cluster", {"over_budget": 96}, "nearly all", ["retrieve.cluster.images", "cap"]),
        ("cluster", {"kept": 19}, None, []),
        ("cluster", {}, None, []),
    ],
)
def test_other_strategies_say_when_they_find_nothing_or_all(strategy, decisions, word, remedies):
    found = selection_problems(*counts(**decisions), -1.0, None, strategy)
    assert len(found) == (word is not None)
    for line in found:
        assert f"retrieve.strategy {strategy} finds {word} of the images" in line
        assert all(remedy in line for remedy in remedies)


@pytest.mark.parametrize("threshold", [0.5, "auto"])
def test_a_target_and_a_threshold_exclude_each_other(threshold):
    with pytest.raises(ValidationError, match=r"retrieve\.threshold=null"):
        RetrieveSettings(target=10, threshold=threshold)


@pytest.mark.parametrize("target", [0, -3, 1.0, 0.0, 1.5, "many", True])
def test_a_target_is_a_count_or_a_share(target):
    with pytest.raises(ValidationError):
        RetrieveSettings(target=target)


def test_counts_and_shares_stay_what_they_are():
    assert [RetrieveSettings(target=x).target for x in (1, 10_000, 0.3)] == [1, 10_000, 0.3]


@pytest.mark.parametrize(("left", "told"), [(0, True), (1, True), (2, False), (100, False)])
def test_negative_seeds_that_leave_next_to_nothing_are_told(left, told):
    problems = barred_problems(100, left, ["adult", "ugly"])
    assert bool(problems) == told
    if told:
        assert f"negative seed adult and ugly: {left} images are left of 100" in problems[0]
        assert "--set seeds.adult.threshold=..." in problems[0]
    assert not barred_problems(100, left, [])
    assert not barred_problems(0, 0, ["adult"])
