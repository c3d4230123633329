import json

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written_reports import write_reports

from curate.loop.table import UNKNOWN, Finished, Kind, check_truth, read_table, write_table
from curate.loop.text import as_text
from curate.report.schemas import IMAGES
from shared.errors import LvdError

MEMBERS = {"00000": ["a.jpg", "b.jpg", "c.png"], "00001": ["a.jpg", "sub/d.jpg", "e.jpg"]}
TRUTH = """part,member,kind,copy_of
00000,a,cat,
00000,b.jpg,cat,
00000,c,dog,
00001,a,dog,
00001,sub/d,dog,
00009,e,dog,
"""
"""Members with and without extension; e's part is another one."""
KEPT = [
    {"00000/a", "00000/b", "00001/a", "00001/e"},
    {"00000/b", "00001/a", "00001/sub/d"},
    set(),
]


def write_run(out, kept, dedup, source):
    """Write what the table reads of a curation that kept `kept`; the images in two files."""
    write_reports(out, [])
    (out / "reports" / "images.parquet").unlink()
    (out / "reports" / "images.parquet").mkdir()
    for part, members in MEMBERS.items():
        table = [
            {"key": f"{part}/{member.partition('.')[0]}", "part": part, "member": member}
            for member in members
        ]
        for row in table:
            row["decision"] = "kept" if row["key"] in kept else "irrelevant"
        pq.write_table(
            pa.Table.from_pylist(table, IMAGES),
            out / "reports" / "images.parquet" / f"{part}.parquet",
        )
    thresholds = {
        "dedup": {"value": dedup, "source": source},
        "retrieve": {"value": 0.5, "source": "embedder"},
    }
    funnel = {"images": 6, "decisions": {"kept": len(kept)}, "thresholds": thresholds}
    (out / "reports" / "funnel.json").write_text(json.dumps(funnel))
    (out / "run.json").write_text(json.dumps({"crawl": "pool", "seed": "/data/my/animals"}))
    return out


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = tmp_path_factory.mktemp("loop")
    (root / "truth.csv").write_text(TRUTH)
    for number, kept in enumerate(KEPT, start=1):
        source = "calibrated" if number == 1 else "embedder"
        write_run(root / f"round-{number}", kept, 0.7 + number / 100, source)
    return root


def table_of(site, **more):
    rounds = [
        Finished("bundled", site / "round-1", {"curate": 10.0, "train": 50.0}, {"k=20": 0.25}),
        Finished("model of round 1", site / "round-2", {"curate": 5.0}, {"k=20": 0.5}),
        Finished("model of round 2", site / "round-3"),
    ]
    return read_table(rounds, recipe="tiny", **more)


def test_kinds_are_counted_by_part_and_by_member_with_and_without_extension(site):
    table = table_of(site, truth=site / "truth.csv")
    assert [figures.kinds for figures in table.rounds] == [
        {"cat": Kind(2, 2), "dog": Kind(3, 1), UNKNOWN: Kind(1, 1)},
        {"cat": Kind(2, 1), "dog": Kind(3, 2), UNKNOWN: Kind(1, 0)},
        {"cat": Kind(2, 0), "dog": Kind(3, 0), UNKNOWN: Kind(1, 0)},
    ]


def test_overlap_is_kept_in_both_of_kept_in_either(site):
    overlaps = [figures.overlap for figures in table_of(site).rounds]
    assert overlaps == [{}, {1: 2 / 5}, {1: 0.0, 2: 0.0}]


def test_two_rounds_that_kept_nothing_have_no_overlap(site):
    nothing = [Finished("one", site / "round-3"), Finished("two", site / "round-3")]
    table = read_table(nothing, recipe="tiny")
    assert table.rounds[1].overlap == {1: None}
    assert "-" in as_text(table)


def test_the_text_says_the_figures_within_100_columns(site):
    table = table_of(site, truth=site / "truth.csv", first_knn={"k=10": 0.2, "k=20": 0.4})
    text = as_text(table)
    assert max(map(len, text.splitlines())) <= 100
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert lines >= {
        "3 rounds on crawl pool, seed my/animals; recipe tiny",
        "bundled 40.0 %",
        "1 bundled 0.7100 0.5000 4 of 6 66.7 % 25.0 %",
        "2 model of round 1 0.7200 0.5000 3 of 6 50.0 % 40.0 % 50.0 %",
        "3 model of round 2 0.7300 0.5000 0 of 6 0 % 0.0 % -",
        "dog 3 1 33.3 % 2 66.7 % 0 0 %",
        "round 3 0.0 % 0.0 %",
        "round 1 10.0 s 50.0 s 60.0 s",
    }


def test_a_round_whose_strategy_has_no_threshold_leaves_its_place_empty(tmp_path):
    out = write_run(tmp_path / "round", [], 0.71, "pipeline")
    funnel = json.loads((out / "reports" / "funnel.json").read_text())
    del funnel["thresholds"]["retrieve"]
    (out / "reports" / "funnel.json").write_text(json.dumps(funnel))
    text = as_text(read_table([Finished("bundled", out)], recipe="tiny"))
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "1 bundled 0.7100 0 of 6 0 %" in lines


def test_many_rounds_stay_within_100_columns(site):
    rounds = [Finished("a/path/of/an/embedder", site / "round-1")] * 10
    text = as_text(read_table(rounds, recipe="tiny", truth=site / "truth.csv"))
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("round 10") == 3  # kinds, overlap, time


def test_the_files_hold_every_figure(site, tmp_path):
    table = table_of(site, truth=site / "truth.csv", first_knn={"k=20": 0.4})
    write_table(table, as_text(table), tmp_path)
    assert (tmp_path / "table.txt").read_text() == as_text(table)
    whole = json.loads((tmp_path / "table.json").read_text())
    assert whole["rounds"][1]["kinds"]["dog"] == {"crawled": 3, "kept": 2}
    found = duckdb.execute(
        "SELECT metric, setting, value FROM read_parquet(?) WHERE round = 2",
        [f"{tmp_path}/*.parquet"],
    ).fetchall()
    assert {(metric, setting): value for metric, setting, value in found} == {
        ("images", ""): 6,
        ("kept", ""): 3,
        ("kept_share", ""): 0.5,
        **{("images", kind): n for kind, n in {"cat": 2, "dog": 3, UNKNOWN: 1}.items()},
        **{("kept", kind): n for kind, n in {"cat": 1, "dog": 2, UNKNOWN: 0}.items()},
        **{("kept_share", k): n for k, n in {"cat": 1 / 2, "dog": 2 / 3, UNKNOWN: 0}.items()},
        ("threshold", "dedup"): 0.72,
        ("threshold", "retrieve"): 0.5,
        ("overlap", "1"): 0.4,
        ("knn", "k=20"): 0.5,
        ("seconds", "curate"): 5.0,
    }


def test_a_truth_without_its_columns_is_refused_in_one_line(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text("part,stem,kind\n")
    with pytest.raises(LvdError, match=r"truth\.csv has no column 'member'"):
        check_truth(path)
    with pytest.raises(LvdError, match=r"none\.csv cannot be read"):
        check_truth(tmp_path / "none.csv")


@pytest.mark.parametrize("row", [b"00000,b,dog,x", b"00000,b", b"00000,b,d\xf6g"])
def test_a_row_that_is_not_like_the_others_is_found_before_anything_is_trained(tmp_path, row):
    path = tmp_path / "truth.csv"
    path.write_bytes(b"part,member,kind\n00000,a,cat\n" + row + b"\n")
    with pytest.raises(LvdError, match=r"truth\.csv(, line 3:| cannot be read)"):
        check_truth(path)
