import csv
import json
import random
import re
from collections import Counter

import pyarrow.parquet as pq
import pytest
from finished_run import finished_run

from curate.demo.summary import KINDS, ONE, REASONS, Places, summary
from curate.filters.decisions import DECISIONS
from curate.report.tables import read_funnel
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
    run.write_text(
        json.dumps(json.loads(run.read_text()) | {"embedder": "bundled-copies and bundled"})
    )
    made.sample.mkdir(parents=True)
    write_truth(made, seed=0)
    lines = [
        {"step": 0, "recognition": 0.07},
        {"step": 9, "loss": 8.0, "step_seconds": 1.0},
        {"step": 19, "loss": 7.0, "step_seconds": 3.0},
        {"step": 20, "recognition": 0.154},
    ]
    made.training.mkdir(parents=True)
    (made.training / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    return made


def write_truth(places, seed):
    """Write a truth in which about half of what the run decided is right."""
    draw = random.Random(seed)
    keys = [image["key"] for image in images(places)]
    called = {image["key"]: image["duplicate_of"] for image in images(places)}
    representatives = sorted({of for of in called.values() if of})
    originals = [draw.choice(representatives), *draw.sample(keys, len(keys) // 2)]
    lines = [("part", "member", "kind", "copy_of", "transform")]
    for key in keys:
        of = ""
        if key not in originals:
            of = called[key] if called[key] in originals else draw.choice(originals)
        kind = draw.choice(("photograph", "photograph", *KINDS, "of no name"))
        lines.append((*key.split("/", 1), kind, of.partition("/")[2], "half" if of else ""))
    with (places.sample / "truth.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


def images(places):
    return pq.read_table(places.curation / "reports" / "images.parquet").to_pylist()


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
    assert "by bundled-copies and bundled; what is bundled this project trained itself" in said


def test_what_none_was_dropped_for_is_not_said(places):
    path = places.curation / "reports" / "funnel.json"
    funnel = json.loads(path.read_text())
    funnel["decisions"] = dict.fromkeys(DECISIONS, 0) | {"duplicate": 50, "corrupt": 4, "kept": 6}
    path.write_text(json.dumps(funnel))
    assert "6 were kept: 50 were copies of others and 4 were broken." in words(places)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_true_is_what_the_truth_and_the_reports_say(places, seed):
    """Counted again picture by picture, as a reader of both files would."""
    write_truth(places, seed)
    with (places.sample / "truth.csv").open(newline="", encoding="utf-8") as file:
        truth = {row["member"]: row for row in csv.DictReader(file)}
    pairs = [  # what was called a copy, and of what
        (truth[image["key"].partition("/")[2]], truth[image["duplicate_of"].partition("/")[2]])
        for image in images(places)
        if image["decision"] == "duplicate"
    ]
    right = [
        (one, other)
        for one, other in pairs
        if one["copy_of"] == other["member"]
        or one["member"] == other["copy_of"]
        or (one["copy_of"] and one["copy_of"] == other["copy_of"])
    ]
    kept = Counter()
    for image in images(places):
        if image["decision"] == "kept":
            of = truth[image["key"].partition("/")[2]]
            kind = truth[of["copy_of"]]["kind"] if of["copy_of"] else of["kind"]
            kept[KINDS.get(kind, "others")] += 1
    planted = sum(bool(row["copy_of"]) for row in truth.values())
    wanted = kept.pop("photographs of what the seed shows", 0)
    assert 0 < len(right) < min(len(pairs), planted)
    assert len(kept) > 1
    said = words(places)
    assert f"Of {planted} planted copies, {len(right)} were found;" in said
    assert f"of {len(pairs)} pictures that were called copies, {len(right)} are." in said
    assert f"Of {wanted + kept.total()} that were kept, {wanted} are photographs of what" in said
    listed = re.search(r"shows; the others are ([^.]*)\.", said)[1]
    pieces = re.split(r", | and (?=\d)", listed)
    ones = {kind: ONE[kind] for kind, count in kept.items() if count == 1}
    assert sorted(pieces) == sorted(f"{n} {ones.get(kind, kind)}" for kind, n in kept.items())
    assert wanted + kept.total() == read_funnel(places.curation)["decisions"]["kept"]


def test_the_time_and_the_score_are_those_of_the_files(places):
    kept = read_funnel(places.curation)["decisions"]["kept"]
    said = words(places)
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
