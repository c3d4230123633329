import json
import re

import pytest
from finished_run import finished_run

from curate.filters.decisions import DECISIONS
from curate.report.pictures import pictures
from curate.report.summary import share, summary
from curate.report.tables import read_funnel
from shared.errors import LvdError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("run") / "out")


def test_the_summary_fits_and_is_plain(run):
    text = summary(run)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "\x1b" not in text
    assert "\\x1b[2J" in text  # a problem from the crawl, escaped


def test_colours_say_nothing_more(run):
    coloured = summary(run, colour=True)
    assert "\x1b[" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in plain.splitlines()] == summary(run).splitlines()


def test_the_funnel_adds_up(run):
    lines = [line.split() for line in summary(run).splitlines()]
    counts = read_funnel(run)["decisions"]
    shown = {words[0]: words for words in lines if words and words[0] in DECISIONS}
    assert {name: int(words[1]) for name, words in shown.items()} == counts
    left = [words[4] for name, words in shown.items() if name != "kept"]
    assert left[-1] == str(counts["kept"])


def test_the_summary_tells_cost_thresholds_and_places(run):
    text = summary(run)
    assert "60 images  12.3 s  4.9 images/s" in text
    assert "cached" in text
    for words in ("calibrated by this run", "set in the pipeline", "1.0000", "shards/"):
        assert words in text


def test_huge_runs_fit(tmp_path):
    out = finished_run(tmp_path / "out")
    funnel = read_funnel(out)
    funnel["images"] = 1_300_000_000
    funnel["decisions"] = dict.fromkeys(DECISIONS, 0) | {"corrupt": 1, "kept": 1_299_999_999}
    funnel["problems"] = ["p" * 300] * 50
    (out / "reports" / "funnel.json").write_text(json.dumps(funnel))
    (out / "timings.json").unlink()
    text = summary(out)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "and 40 more" in text
    assert "1,299,999,999  > 99.9 %" in text


def test_shares_never_round_to_nothing_or_all():
    assert [share(n, 10_000) for n in (0, 1, 5, 9_999, 10_000)] == [
        "0 %",
        "< 0.1 %",
        "0.1 %",
        "> 99.9 %",
        "100.0 %",
    ]


def test_an_unfinished_run_is_named(tmp_path):
    with pytest.raises(LvdError, match="holds no finished run"):
        summary(tmp_path)


LOOKED = {"pairs": 200, "false": 24, "unsure": 0, "unreadable": 0, "threshold": 0.8312}
LOOKED |= {"precision": 0.88, "low": 0.83, "high": 0.92}


def told(out, seen):
    path = out / "reports" / "funnel.json"
    path.write_text(json.dumps(read_funnel(out) | {"dedup_precision": seen}))
    page = pictures(out, lambda key: None).read_text()
    return summary(out).splitlines(), page


def test_many_false_copies_are_told_first_with_what_to_change(tmp_path):
    lines, page = told(finished_run(tmp_path / "out"), LOOKED)
    said = "about 12% of the copies look false, 8 to 17% (200 pairs compared again by their pixels)"
    assert "--set dedup.precision=0.999" in lines[0]
    assert lines[1] == said
    assert max(map(len, lines)) <= 100
    assert f"A{said[1:]}. From cosine 0.8312 at most 1% of those looked at would be." in page
    assert ">dedup.threshold=0.8312<" in page


def test_few_false_copies_are_told_beside_the_thresholds(tmp_path):
    out = finished_run(tmp_path / "out")
    lines, page = told(out, LOOKED | {"precision": 0.99, "low": 0.96, "high": 1.0})
    said = (
        "about 1% of the copies look false, at most 4% (200 pairs compared again by their pixels)"
    )
    assert "images kept" in lines[0]
    assert f"  {said}" in lines
    assert f"A{said[1:]}" in page


def test_without_near_copies_nothing_is_said_of_them(tmp_path):
    lines, page = told(finished_run(tmp_path / "out"), None)
    assert "look false" not in "\n".join(lines) + page


def test_what_a_large_seed_loses_is_told(tmp_path):
    out = finished_run(tmp_path / "out")
    assert "completeness of" not in summary(out)
    funnel = read_funnel(out)
    measured = {"queries": 256, "pairs": 1_280, "found": 1_260, "recall": 1_260 / 1_280}
    seed = {"images": 2_000_000, "negative": False, "strategy": "threshold", "threshold": None}
    told = {"description": "all", "retrieved": 5, "alone": 5, "search_recall": measured}
    funnel["seeds"] = {"large": {**seed, **told}}
    (out / "reports" / "funnel.json").write_text(json.dumps(funnel))
    [line] = [line for line in summary(out).splitlines() if "completeness of" in line]
    assert line.split("  ")[-1].strip() == "1,280 nearest by exact search of 256"
    assert "0.9844" in line
