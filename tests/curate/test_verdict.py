"""What a report says first: what was kept, what looks wrong, and a command that can be pasted."""

import shlex

import pytest

from curate.cli.run import run as run_command
from curate.report.other_thresholds import Counts
from curate.report.threshold_section import command_by_relevance
from curate.report.verdict import rerun, verdict
from shared.commands import called

RUN = {
    "crawl": "web pages",
    "seed": "animals",
    "holdouts": ["test set"],
    "settings": {"pipeline": "default", "crawl": "web pages", "seeds": {"animals": {}, "it's": {}}},
}
WELL = {
    "images": 1000,
    "decisions": {
        **dict.fromkeys(("unsafe", "low_quality", "holdout", "over_budget"), 0),
        **{"corrupt": 10, "duplicate": 290, "irrelevant": 400, "kept": 300},
    },
    "thresholds": {"dedup": {"value": 0.8, "source": "pipeline"}},
    "dedup_recall": {"recall": 1.0},
}
LOOKED = {"pairs": 200, "unsure": 0, "unreadable": 0, "low": 0.8, "high": 0.93, "precision": 0.88}


def told(**changes):
    """Return the verdict of a run that went well but for some changes."""
    return verdict(WELL | changes, RUN, None)


def options(command):
    """Return what lvd-curate makes of a command."""
    words = shlex.split(command)
    assert words[:2] == [called("lvd-curate"), "run"]
    return run_command.make_context("run", words[2:], resilient_parsing=True).params


def test_a_run_that_went_well_says_so_and_no_more():
    found = told()
    assert found.sentences == [
        "300 of 1,000 crawled images are kept (30.0 %): 290 are copies, 400 are too unlike the seed and "
        "10 cannot be decoded.",
        "Copies begin at cosine 0.8, set in the pipeline.",
        "Nothing looks wrong: the search found all of the pairs it had to find.",
    ]
    assert found.remedies == []


def test_false_copies_come_with_the_threshold_that_mends_them_and_what_it_would_do():
    columns = {"released": [0, 3, 40], "of_kept": [0, 1, 25]}
    counts = Counts("dedup.threshold", [0.8, 0.85, 0.9], columns, 0)
    found = verdict(WELL | {"dedup_precision": LOOKED | {"threshold": 0.87}}, RUN, counts)
    [remedy] = found.remedies
    assert remedy.what.startswith("About 12% of the copies look false")
    assert "At 0.9, 40 of the copies would stand for themselves, 25 of them copies" in remedy.what
    assert options(remedy.command)["overrides"] == ("dedup.threshold=0.87",)
    for drawn, asked in ((0.9, 0.9), (0.85, 0.87)):
        thresholds = {**WELL["thresholds"], "dedup": {"threshold": 0.8, "drawn": drawn}}
        looked = LOOKED | {"threshold": 0.87}
        [remedy] = told(dedup_precision=looked, thresholds=thresholds).remedies
        assert options(remedy.command)["overrides"] == (
            "dedup.threshold=0.87",
            f"dedup.drawn_threshold={asked}",
        )
    [remedy] = told(dedup_precision=LOOKED | {"threshold": None}).remedies
    assert "name another dedup.embedder" in remedy.what
    assert remedy.command == ""


@pytest.mark.parametrize(
    ("changes", "what", "command"),
    [
        ({"decisions": WELL["decisions"] | {"kept": 0}}, "Nothing was kept", "retrieve.target=0.1"),
        ({"dedup_recall": {"recall": 0.9}}, "90.0% of the pairs", "dedup.probes=40"),
        ({"decisions": WELL["decisions"] | {"corrupt": 60}}, "6.0 %", "--retry corrupt"),
        ({"problems": ["part 3 was cut short"]}, "Part 3 was cut short.", ""),
    ],
)
def test_what_looks_wrong_comes_with_a_command_where_one_mends_it(changes, what, command):
    found = told(**changes)
    [remedy] = found.remedies
    assert what in remedy.what
    assert command in remedy.command
    assert not any("Nothing looks wrong" in sentence for sentence in found.sentences)


def test_no_target_is_named_where_nothing_was_judged():
    dropped = WELL["decisions"] | {"kept": 0, "irrelevant": 0, "unsafe": 700}
    [remedy] = told(decisions=dropped).remedies
    assert (remedy.what, remedy.command) == ("Nothing was kept.", "")


def test_the_command_names_the_data_of_the_run_and_a_new_folder():
    asked = options(rerun(RUN, "retrieve.threshold=0.5"))
    assert asked["crawl"] == "web pages"
    assert tuple(asked["seeds"]) == ("animals", "it's")
    assert tuple(asked["holdouts"]) == ("test set",)
    assert asked["pipeline"] == "default"
    assert str(asked["out"]) == "runs/curate/retrieve.threshold-0.5"


def test_the_command_has_the_options_of_the_run_but_for_what_it_changes():
    said = ["--embedder", "bundled", "--set", "retrieve.threshold = 0.7", "--set", "report.top_k=3"]
    asked = options(rerun(RUN | {"options": said}, "retrieve.threshold=0.5"))
    assert asked["embedder"] == "bundled"
    assert asked["overrides"] == ("report.top_k=3", "retrieve.threshold=0.5")


@pytest.mark.parametrize(
    ("retrieve", "changes"),
    [
        ({"threshold": 0.9}, ("retrieve.threshold=null", "retrieve.target=0.1")),
        ({"threshold": None}, ("retrieve.target=0.1",)),
        ({"strategy": "knn"}, None),
    ],
)
def test_a_target_takes_the_place_of_a_threshold_where_the_strategy_has_one(retrieve, changes):
    run = RUN | {"settings": RUN["settings"] | {"retrieve": retrieve}}
    [remedy] = verdict(WELL | {"decisions": WELL["decisions"] | {"kept": 0}}, run, None).remedies
    assert (options(remedy.command)["overrides"] if remedy.command else None) == changes


@pytest.mark.parametrize(
    ("retrieve", "seeds", "changes"),
    [
        ({"threshold": 0.6}, {"web": {"threshold": 0.6}}, ("retrieve.threshold=0.5",)),
        (
            {"target": 60},
            {"web": {"target": 60}},
            ("retrieve.target=null", "retrieve.threshold=0.5"),
        ),
        (
            {},
            {"web": {"threshold": 0.7}, "adult": {"threshold": 0.4, "negative": True}},
            ("retrieve.threshold=0.5", "seeds.web.threshold=0.5"),
        ),
        ({}, {"a.tar": {"threshold": 0.7}}, None),
    ],
)
def test_the_command_of_relevance_names_what_says_the_threshold(retrieve, seeds, changes):
    run = RUN | {"settings": {"pipeline": "default", "retrieve": retrieve, "seeds": seeds}}
    command = command_by_relevance(run).replace("{}", "0.5")
    assert (options(command)["overrides"] if command else None) == changes


def test_the_command_of_a_slider_leaves_drawn_pictures_their_threshold():
    command = rerun(RUN, "dedup.threshold={}", "dedup.drawn_threshold={drawn}", folder="at-{}")
    chosen = command.replace("{}", "0.85").replace("{drawn}", "0.9")  # as report.js does
    asked = options(chosen)
    assert asked["overrides"] == ("dedup.threshold=0.85", "dedup.drawn_threshold=0.9")
    assert str(asked["out"]) == "runs/curate/at-0.85"
