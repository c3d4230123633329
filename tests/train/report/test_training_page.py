"""The page of a training says what its files say: how far, what looks wrong, curves and recipe."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from training_out import BATCH, STEPS, step_line, whole_run, write_out

from shared.commands import called
from shared.errors import LvdError
from shared.storage.locks import locked
from train.cli import main
from train.monitoring.collapse import WORDS
from train.monitoring.status import state_of
from train.report.history import MOST_POINTS, Curve, read_history
from train.report.page import write_page
from train.report.verdict import verdict

FEW = [{"step": step, "loss": 5.0, "images_per_second": 16.0} for step in range(0, 41, 2)]
"""Lines that are quick to draw."""


def told(out, lines):
    """What is said first of a run: its sentences, then its remedies."""
    history = read_history(lines)
    said = verdict(state_of(out, history.last), history)
    return said.sentences, [remedy.what for remedy in said.remedies], said.remedies


def test_a_finished_run_has_its_curves_pictures_and_recipe_on_one_page(tmp_path):
    origin = {"name": "mine", "parent": "small", "changes": {"crops.local_views": [8, 2]}}
    out = write_out(tmp_path / "out", whole_run(), origin=origin)
    result = CliRunner().invoke(main, ["report", str(out)])
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(out / "report.html")
    page = (out / "report.html").read_text()
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert f"Finished: {STEPS} steps on {STEPS * BATCH} images" in words
    assert "K-NN top-1 on the labelled images rose from 10.0% to 60.0%." in words
    assert "Nothing looks wrong." in words
    for metric in ("dino", "knn", "lr", "momentum", "feature_rank", "work_seconds", "data_wait"):
        assert (f'aria-label="{metric}: ' in page) == (metric != "data_wait"), metric
    assert page.count("data:image/jpeg;base64,") == 2 + 2 * 2
    assert "after step 50" in words
    assert "crops.local_views 8 2" in words
    assert "http" not in words.replace("http-equiv", "")
    assert not list(out.glob(".report*"))


def test_the_same_files_give_the_same_page(tmp_path):
    pages = [write_page(write_out(tmp_path / name / "out", FEW)).read_text() for name in "ab"]
    assert pages[0].replace(f"{tmp_path}/a", "") == pages[1].replace(f"{tmp_path}/b", "")


def test_a_run_at_work_is_drawn_without_its_lock(tmp_path):
    out = write_out(tmp_path / "out", FEW, done=False)
    with locked(out / ".lock", "busy"):
        page = write_page(out).read_text()
    # 59 steps of 8 images, 16 a second.
    assert f"At work: 41 of {STEPS} steps are done, about 29.5 s are left." in page


def test_a_run_that_was_killed_says_how_to_go_on(tmp_path):
    out = write_out(tmp_path / "out", [], done=False)
    (out / "checkpoints" / "step-0000040").mkdir(parents=True)
    (out / "checkpoints" / "step-0000040" / "manifest.json").write_text("{}")
    sentences, wrong, _ = told(out, [step_line(s) for s in range(0, 51, 2)])
    assert sentences[0] == f"Cut off after step 51 of {STEPS} (safe up to step 40)."
    assert wrong == ["It did not come to its end: run the same command to go on."]


def test_a_run_that_stopped_itself_says_why(tmp_path):
    out = write_out(tmp_path / "out", [], done=False)
    skips = [{"step": s, "rank": 0, "not_finite": ["dino"], "keys": []} for s in range(51, 56)]
    (out / "skipped.jsonl").write_text("".join(json.dumps(skip) + "\n" for skip in skips))
    lines = [step_line(50)]
    [why] = told(out, lines)[1]
    assert "5 steps in a row were not finite (dino)" in why
    assert "optimiser.base_lr" in why
    (out / "skipped.jsonl").write_text("".join(json.dumps(s) + "\n" for s in skips[1:]))
    assert "did not come to its end" in told(out, lines)[1][0]


def test_signs_of_collapse_are_said_in_words_with_the_remedy(tmp_path):
    out = write_out(tmp_path / "out", [])
    signs = {10: ["peaked"], 12: ["peaked"], 90: ["low_rank"], 98: ["low_rank"]}
    lines = [step_line(s, collapse=signs.get(s, [])) for s in range(0, STEPS, 2)]
    sentences, wrong, _ = told(out, lines)
    assert "Nothing looks wrong." not in sentences
    peaked, rank = WORDS["peaked"], WORDS["low_rank"]
    assert f"At steps 10 to 12, in 2 lines, {peaked.meaning}; it has gone since" in wrong[0]
    assert f"Collapse? Since step 90, {rank.meaning}. Try: {rank.remedy}." == wrong[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_wait": 0.4}, "40% of the time was spent waiting for data: raise data.workers"),
        ({"broken": 20}, f"20 of {STEPS * BATCH} images could not be read"),
        ({"skipped": 3}, "3 steps were skipped"),
        ({"loss": None, "non_finite": {"loss": "nan"}}, "The loss of the last line is not finite"),
    ],
)
def test_what_looks_wrong_has_a_remedy(tmp_path, changes, said):
    out = write_out(tmp_path / "out", [])
    good = [step_line(s) for s in range(0, STEPS, 2)]
    assert told(out, good)[1] == []
    [wrong] = told(out, [line | changes for line in good])[1]
    assert wrong.startswith(said)


def test_a_score_that_fell_names_the_checkpoint_that_was_better(tmp_path):
    out = write_out(tmp_path / "out", [])
    scores = [{"step": 0, "knn": 0.1}, {"step": 60, "knn": 0.5}, {"step": 100, "knn": 0.3}]
    _, [wrong], [remedy] = told(out, [step_line(0), *scores, step_line(99)])
    assert "was 50.0% after step 60 and is 30.0% now" in wrong
    assert remedy.command == ""
    (out / "checkpoints" / "step-0000060").mkdir(parents=True)
    _, _, [remedy] = told(out, [step_line(0), *scores, step_line(99)])
    assert remedy.command.startswith(
        f"{called('lvd-train')} export {out}/checkpoints/step-0000060 --out "
    )


def test_what_there_is_nothing_to_draw_of_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LvdError, match="no training has begun in"):
        write_page(tmp_path / "empty")
    out = write_out(tmp_path / "out", [], done=False)
    for content in ("", '{"step": 3, "lo'):
        (out / "metrics.jsonl").write_text(content)
        with pytest.raises(LvdError, match="has measured nothing yet") as refused:
            write_page(out)
        assert "\n" not in str(refused.value)
    assert not Path(out / "report.html").exists()


def test_names_from_outside_are_escaped(tmp_path):
    origin = {"name": "<script>x", "parent": "a", "changes": {"data.mix": ["<b>", "\u202ey"]}}
    page = write_page(write_out(tmp_path / "out", FEW, origin=origin)).read_text()
    assert not re.search("<script|\u202e|<td><b>", page)
    assert "&lt;script&gt;x" in page


def test_a_long_run_is_thinned_to_means_and_keeps_its_extremes():
    curve, most = Curve(), 50 * MOST_POINTS
    for step in range(most):
        curve.add(step, -99.0 if step == 12_345 else float(step))
    points = curve.points
    assert MOST_POINTS <= len(points) <= 2 * MOST_POINTS
    assert curve.low == (-99.0, 12_345)
    assert (curve.first, curve.last) == (0.0, most - 1)
    own = [(step, value) for step, value in points if abs(step - 12_345) > curve.lines_a_point]
    assert all(value == step for step, value in own)


def test_a_run_notes_what_it_changes_of_its_recipe(sharded_run):
    origin = json.loads((sharded_run / "run.json").read_text())["origin"]
    assert (origin["name"], origin["parent"]) == ("small", "small")
    assert origin["changes"]["steps"] == [12, 2]
    assert origin["changes"]["model.layer_scale"] == [None, 0.1]
