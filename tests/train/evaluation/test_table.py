import json
import math

import pyarrow.parquet as pq
import pytest

from shared.errors import LvdError
from train.evaluation.scores import Score
from train.evaluation.table import Row, Table
from train.evaluation.table_files import COLUMNS, write_table
from train.evaluation.table_text import as_text

PLACES = {"train": "the train", "test": "the test", "data": None}


def row(model, plus=0.0, **failures):
    scores = [Score("knn", "top-1", 0.25 + plus + k / 1000, f"k={k}") for k in (10, 20)]
    scores.append(Score("linear", "top-1", 0.5 - plus, f"cls, lr {0.1 + plus:g}"))
    scores.append(Score("depth", "RMSE", 1.25 + plus, higher_is_better=False))
    scores = [score for score in scores if score.task not in failures]
    return Row(model, f"print of {model}", [f"{model}: 32 px"], scores, failures)


def table(*rows, tasks=("knn", "linear", "depth"), **more):
    return Table(tasks, rows, PLACES, **more)


def line(text, start):
    (found,) = (line for line in text.splitlines() if line.startswith(start))
    return found.split()[1:]


def test_models_stand_side_by_side_with_the_best_of_each_column_marked():
    lines = as_text(table(row("runs/one"), row("two", 0.25))).splitlines()
    assert lines[:5] == [
        "             knn      knn   linear    depth",
        "           top-1    top-1    top-1   RMSE ↓",
        "            k=10     k=20",
        "runs/one  0.2600   0.2700   0.5000*  1.2500*",
        "two       0.5100*  0.5200*  0.2500   1.5000",
    ]
    assert "* the best of its column; ↓ the lower, the better" in lines


def test_what_is_said_of_all_models_is_said_once():
    notes = [
        Score("knn", "top-1", 0.5, note="so few; too old"),
        Score("linear", "top-1", 0.5, "lr 1"),
    ]
    rows = [Row(name, name, ["32 px"], notes) for name in ("one", "two")]
    other = Row("three", "3", ["64 px"], [Score("linear", "top-1", 0.7, "lr 1", note="so few")])
    assert as_text(table(*rows)).count("  knn: so few\n  knn: too old\n") == 1
    text = as_text(table(*rows, other, notes=["about the data"]))
    said = text[text.index("Settings") :].splitlines()
    assert said == [
        *("Settings", "  linear: lr 1", ""),
        *("Notes", "  about the data", "  one, two, knn: so few"),
        *("  one, two, knn: too old", "  three, linear: so few", ""),
        *("What each model sees, by its own config", "  32 px", "  64 px"),
    ]


def test_a_setting_that_won_stands_beneath_with_its_model():
    text = as_text(table(row("one"), row("two", 0.1)))
    assert "  one, linear: cls, lr 0.1\n  two, linear: cls, lr 0.2\n" in text


def test_one_model_alone_is_not_the_best_and_equals_share_the_mark():
    assert "0.5000*" not in as_text(table(row("one")))
    same = as_text(table(row("one"), row("two"), row("three", -0.1)))
    assert line(same, "one") == line(same, "two") == ["0.2600*", "0.2700*", "0.5000", "1.2500"]


def test_what_failed_is_said_and_leaves_a_gap():
    text = as_text(table(row("one"), row("two", linear="it broke")))
    assert line(text, "two")[2:] == ["-", "1.2500*"]
    assert text.endswith("Failed\n  two, linear: it broke\n")
    nothing = Row("none", "", [], [], {"knn": "why"})
    assert line(as_text(table(row("one"), nothing)), "none") == ["-"] * 4


def test_a_score_that_is_no_number_is_neither_the_best_nor_a_number_in_json(tmp_path):
    odd = Row("odd", "", [], [Score("knn", "top-1", math.nan)])
    made = table(odd, Row("fine", "", [], [Score("knn", "top-1", 0.25)]))
    assert line(as_text(made), "odd") == ["nan"]
    assert line(as_text(made), "fine") == ["0.2500*"]
    write_table(made, tmp_path)
    found = json.loads((tmp_path / "table.json").read_text())["figures"]
    assert [figure["value"] for figure in found] == [None, 0.25]


@pytest.mark.parametrize("name", ["short", "x" * 300, "a folder/" * 30])
def test_nothing_is_wider_than_100_columns_and_no_column_is_lost(name):
    scores = [
        Score("retrieval", f"a metric {n}", n / 100, setting, note=f"{name} {n}")
        for n in range(9)
        for setting in ("easy", "hard")
    ]
    rows = [Row(f"{name}{n}", "", [f"{name} needs"], scores) for n in range(3)]
    text = as_text(table(*rows, tasks=["retrieval"]))
    assert max(map(len, text.splitlines())) <= 100
    head = text[: text.index("* the best")]
    assert head.count("easy") == head.count("hard") == 9
    assert all(head.count(f"0.0{n}00*") == 2 * 3 for n in range(9))


def test_a_name_cannot_steer_the_terminal():
    assert "\x1b" not in as_text(table(row("\x1b[2J\nevil")))


def test_parquet_and_json_hold_each_figure_in_full(tmp_path):
    made = table(row("one"), row("two", 1 / 3, depth="it broke"), settings={"seed": 0})
    write_table(made, tmp_path / "new" / "folder")
    found = pq.read_table(tmp_path / "new" / "folder" / "table.parquet")
    assert found.schema.equals(COLUMNS)
    assert found.to_pylist() == made.figures()
    assert [(r["model"], r["task"], r["setting"]) for r in found.to_pylist()][4:] == [
        *(("two", "knn", "k=10"), ("two", "knn", "k=20")),
        ("two", "linear", made.rows[1].scores[2].setting),
    ]
    assert {(r["train"], r["test"], r["data"]) for r in found.to_pylist()} == {
        ("the train", "the test", None)
    }
    whole = json.loads((tmp_path / "new" / "folder" / "table.json").read_text())
    assert whole["figures"] == made.figures()
    assert whole["models"][1] == {
        **{"name": "two", "fingerprint": "print of two", "needs": ["two: 32 px"]},
        "failures": {"depth": "it broke"},
    }
    assert whole["settings"] == {"seed": 0}
    assert (tmp_path / "new" / "folder" / "table.txt").read_text() == as_text(made)


def test_equal_tables_are_equal_bytes_and_leave_nothing_beside(tmp_path):
    for name in ("a", "b", "a"):
        write_table(table(row("one"), row("two", 0.1)), tmp_path / name)
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert files == {"table.txt", "table.parquet", "table.json"}
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LvdError, match=r"--out .*file cannot be written .*: name another folder"):
        write_table(table(row("one")), tmp_path / "file")
