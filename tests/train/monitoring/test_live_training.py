"""The live page of a training says what its files say, and reads each byte of its metrics once."""

import json

from click.testing import CliRunner
from training_out import BATCH, STEPS, step_line, write_out

from shared.storage.locks import locked
from train.cli import main
from train.monitoring.live import Tail, live_page


def test_what_the_files_of_a_training_say_is_shown(tmp_path):
    lines = [step_line(20), {"step": 21, "knn": 0.5}, step_line(40, broken=2, collapse=["peaked"])]
    out = write_out(tmp_path / "out", lines, done=False)
    with locked(out / ".lock", "busy"):
        page = live_page(out)()
    facts = dict(page.facts)
    assert facts["steps"] == f"41 of {STEPS}"
    assert facts["left"] == f"about {(STEPS - 41) * BATCH / 16:.1f} s"
    assert facts["k-NN top-1"] == "50.0%"
    assert facts["failures"] == "2 broken"
    assert "raise teacher.temperature" in facts["collapse?"]
    assert page.share == 0.41
    captions = [caption for caption, _ in page.pictures]
    assert captions == ["the pictures", "attention after step 50", "patches after step 50"]


def test_a_training_that_has_not_begun_is_starting(tmp_path):
    assert live_page(tmp_path)().facts == [("stage", "starting")]


def test_lines_are_read_once_torn_ones_later_and_a_file_that_was_cut_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    tail.read()
    assert tail.last == {}
    first, second = (json.dumps(step_line(step)) + "\n" for step in (1, 2))
    path.write_text(first + second[:30])
    tail.read()
    assert (tail.last["step"], tail._at) == (1, len(first))
    with path.open("a") as file:
        file.write(second[30:] + '{"step": 3, "knn": 0.25}\n')
    tail.read()
    assert (tail.last["step"], tail.scores["knn"]) == (2, 0.25)
    beside = tmp_path / "cut"
    beside.write_text(first)
    beside.rename(path)
    tail.read()
    assert (tail.last["step"], tail.scores) == (1, {})


def test_a_port_that_is_taken_is_one_line_before_anything_else(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        words = ["run", "--recipe", "nobody", "--out", str(tmp_path / "o"), "--serve", port]
        result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert f"--serve {port}" in result.output
    assert not (tmp_path / "o").exists()
