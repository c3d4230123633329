"""How right a run was, counted against the truth about the sample."""

import csv
from collections import Counter

import pytest
from written_reports import write_reports

from curate.demo.truth import Findings, check_decisions, read_truth
from curate.sample.make import make_sample
from shared.errors import LvdError

TRUTH = """part,member,kind,copy_of,transform
00000,a,photograph,,
00001,a1,photograph,a,half
00001,a2,photograph,a,png
00000,b,chart,,
00001,b1,chart,b,exact
00000,c,object,,
00001,odd,odd,c,gif
00001,lost,corrupt,,truncated
"""
DECIDED = [
    ("00000/a", "duplicate", "00001/a2"),  # right: the copy was the better picture
    ("00001/a1", "duplicate", "00001/a2"),  # right: both are made from a
    ("00001/a2", "kept", None),
    ("00000/b", "irrelevant", None),
    ("00001/b1", "duplicate", "00000/c"),  # wrong, and missed as a copy of b
    ("00000/c", "kept", None),
    ("00001/odd", "kept", None),  # missed
    ("00001/lost", "corrupt", None),
]


def test_a_copy_is_found_where_both_pictures_have_one_original(tmp_path):
    (tmp_path / "truth.csv").write_text(TRUTH)
    names = ("key", "decision", "duplicate_of")
    write_reports(tmp_path, [dict(zip(names, row, strict=True)) for row in DECIDED])
    findings = check_decisions(tmp_path, read_truth(tmp_path))
    assert findings == Findings(4, 3, 2, Counter({"photograph": 1, "object": 2}))


def test_the_sample_says_the_original_and_the_kind_of_every_picture(tmp_path):
    made = make_sample(tmp_path / "sample", images=100)
    truth = read_truth(tmp_path / "sample")
    with (tmp_path / "sample" / "truth.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len({row["member"] for row in table}) == len(truth.originals) == made["images"]
    copies = {key for key, original in truth.originals.items() if key != original}
    assert copies == {f"{row['part']}/{row['member']}" for row in table if row["copy_of"]}
    assert copies.isdisjoint(truth.originals.values())  # no copy is made from a copy
    assert "odd" not in truth.kinds.values()
    assert sum(made["kinds"].values()) == len(truth.kinds)


def test_without_a_readable_truth_there_is_none(tmp_path):
    assert read_truth(tmp_path) is None
    (tmp_path / "truth.csv").write_text("part,member,kind\n00000,a,chart\n")
    assert read_truth(tmp_path) is None


def test_a_picture_that_the_truth_does_not_know_is_named(tmp_path):
    (tmp_path / "truth.csv").write_text(TRUTH)
    with pytest.raises(LvdError, match=r"does not know 00000/other.*remove"):
        read_truth(tmp_path).is_copy("00000/a", "00000/other")
