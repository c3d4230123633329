"""The table of scores: side by side, marked, complete, the same bytes each time."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from train.evaluation.scores import Score
from train.evaluation.table import WIDTH, ModelScores, table_text, write_table


def rows() -> list[ModelScores]:
    def of(name: str, plus: float) -> ModelScores:
        scores = [Score("knn", "top-1", 0.4 + plus + k / 1000, f"k={k}") for k in (10, 20)]
        scores.append(Score("linear", "top-1", 0.5 - plus, f"cls x4, lr {plus + 0.1:.1f}"))
        scores.append(Score("depth", "RMSE", 1.25 + plus, higher_is_better=False))
        return ModelScores(name, [f"{name}: 224 px, pooled by token"], "f" * 64, scores)

    failed = ModelScores("broken", [], failures=["--model broken: no such folder"])
    return [of("runs/train/one", 0.0), of("two", 0.2), failed]


ABOUT = {"data": {"train": "here", "test": "there"}, "settings": {}, "size": None, "versions": {}}


def test_models_stand_side_by_side_with_the_best_of_each_column_marked() -> None:
    text = table_text(rows(), ABOUT["data"])
    one, two = (
        next(line for line in text.splitlines() if line.startswith(name))
        for name in ("runs/train/one", "two")
    )
    assert one.split() == ["runs/train/one", "41.0", "42.0", "50.0*", "1.250*"]
    assert two.split() == ["two", "61.0*", "62.0*", "30.0", "1.450"]
    assert (
        next(line for line in text.splitlines() if line.startswith("broken")).split()[1:]
        == ["-"] * 4
    )
    assert "k=10" in text.splitlines()[2]
    assert "two, linear top-1: cls x4, lr 0.3" in text
    assert "two: 224 px, pooled by token" in text
    assert "no such folder" in text


def test_no_line_of_figures_is_wider_than_a_terminal() -> None:
    many = [
        ModelScores(
            f"{'x' * 60}/{n}",
            [],
            scores=[
                Score("retrieval", f"metric {m}", 0.5, s)
                for m in range(6)
                for s in ("easy", "hard")
            ],
        )
        for n in range(3)
    ]
    lines = table_text(many, {}).split("What each")[0].splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert sum("metric 5" in line for line in lines) == 1
    assert len({line.split()[0] for line in lines if line.startswith("x")}) == 3


def test_parquet_and_json_hold_every_figure_in_full(tmp_path: Path) -> None:
    write_table(rows(), ABOUT, tmp_path)
    table = pq.read_table(tmp_path / "table.parquet").to_pylist()
    expected = [(row.model, score) for row in rows() for score in row.scores]
    assert [(r["model"], r["task"], r["metric"], r["setting"], r["value"]) for r in table] == [
        (model, s.task, s.metric, s.setting, s.value) for model, s in expected
    ]
    report = json.loads((tmp_path / "table.json").read_text())
    assert [s["value"] for m in report["models"] for s in m["scores"]] == [
        s.value for _, s in expected
    ]
    assert report["models"][2]["failures"]


def test_the_same_scores_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(rows(), ABOUT, tmp_path / name)
    for file in ("table.txt", "table.parquet", "table.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        *("table.json", "table.parquet", "table.txt"),
    ]
