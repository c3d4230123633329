import csv
import json
import re

import pytest
from finished_run import finished_run

from curate.demo.summary import REASONS, Places, summary
from curate.filters.decisions import DECISIONS
from curate.report.tables import open_tables, read_funnel
from shared.errors import LvdError


@pytest.fixture
def places(tmp_path):
    """A finished demo: its curation, the truth about its crawl, what its training measured."""
    made = Places(
        finished_run(tmp_path / "curate" / "sample"),
        tmp_path / "train" / "sample",
        tmp_path / "look" / "sample",
        tmp_path / "work" / "sample",
    )
    run = made.curation / "run.json"
    run.write_text(json.dumps(json.loads(run.read_text()) | {"embedder": "descriptor and bundled"}))
    made.sample.mkdir(parents=True)
    found = open_tables(made.curation).execute("SELECT key, decision FROM images").fetchall()
    with (made.sample / "truth.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("part", "member", "kind"))
        for key, decision in found:
            kind = "photograph" if decision == "kept" and key != "00000/i0007" else "chart"
            table.writerow((*key.split("/", 1), kind))
    lines = [
        {"step": 0, "recognition": 0.07},
        {"step": 9, "loss": 8.0, "step_seconds": 1.0},
        {"step": 19, "loss": 7.0, "step_seconds": 3.0},
        {"step": 20, "recognition": 0.154},
    ]
    made.training.mkdir(parents=True)
    (made.training / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    return made


def words(places):
    return " ".join(summary(places).split())


def test_every_picture_is_accounted_for_in_plain_words(places):
    counts = read_funnel(places.curation)["decisions"]
    said = words(places)
    assert f"From {sum(counts.values())} pictures" in said
    assert f"{counts['kept']} were kept" in said
    assert set(REASONS) == set(DECISIONS) - {"kept"}
    for name, meaning in REASONS.items():
        assert f"{counts[name]} were {meaning}" in said
    assert "by descriptor and bundled; the bundled model is one that this project trained" in said


def test_what_none_was_dropped_for_is_not_said(places):
    path = places.curation / "reports" / "funnel.json"
    funnel = json.loads(path.read_text())
    funnel["decisions"] = dict.fromkeys(DECISIONS, 0) | {"duplicate": 50, "corrupt": 4, "kept": 6}
    path.write_text(json.dumps(funnel))
    assert "6 were kept: 50 were copies of others and 4 were broken." in words(places)


def test_the_truth_the_time_and_the_score_are_those_of_the_files(places):
    kept = read_funnel(places.curation)["decisions"]["kept"]
    said = words(places)
    truth = f"{kept - 1} photographs of what the seed shows and 1 drawn charts and pages"
    assert f"known here: {truth}." in said
    assert f"learned from these {kept}, without labels, for 40 seconds." in said
    assert "in 15% of cases; untrained, in 7%" in said


def test_what_is_not_there_is_not_said(places):
    (places.sample / "truth.csv").unlink()
    (places.training / "metrics.jsonl").write_text('{"step": 0, "recog')
    said = words(places)
    assert "known here" not in said
    assert "cases" not in said
    assert "learned from" in said


def test_it_fits_and_names_every_place(places):
    text = summary(places)
    assert all(len(line) <= 100 for line in text.splitlines() if "/" not in line)
    for path in (
        places.picture,
        places.look / "index.html",
        places.curation / "reports" / "index.html",
        places.curation / "shards",
        places.training / "model",
    ):
        assert str(path) in text


def test_short_names_stand_beside_what_they_are(places, monkeypatch):
    root = places.curation.parents[1]
    monkeypatch.chdir(root)
    short = Places(*(path.relative_to(root) for path in vars(places).values()))
    text = summary(short)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert re.search(r"^  train/sample/model {4,}the new model", text, re.MULTILINE)


def test_an_unfinished_curation_is_named(places):
    (places.curation / "reports" / "funnel.json").unlink()
    with pytest.raises(LvdError, match="holds no finished run"):
        summary(places)
