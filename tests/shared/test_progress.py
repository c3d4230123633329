import os
import pty
import re
import subprocess
import sys
import threading

import pytest

from shared import progress
from shared.progress import StageBar, duration, printable, rate, say, stage_bar, warn


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_a_stage_leaves_one_plain_line_where_there_is_no_terminal(clock, capsys):
    with stage_bar("embed", 1076) as bar:
        for _ in range(1076):
            bar.advance()
        clock[0] += 12.3
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "embed       1,076 images  12.3 s  87/s\n"


def test_a_long_stage_speaks_at_most_every_thirty_seconds(clock, capsys):
    with stage_bar("embed", 1000) as bar:
        for _ in range(100):
            clock[0] += 1
            bar.advance(10)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0] == "embed       300/1,000 images  10/s  70.0 s left"


def test_what_an_earlier_run_did_enters_neither_rate_nor_eta(clock, capsys):
    with stage_bar("embed", 1000) as bar:
        bar.skip(900)
        bar.advance(10)
        clock[0] += 10
        bar.advance(50)
        assert bar.status() == "960/1,000 images  5.0/s  8.0 s left"
        bar.advance(40)
    with stage_bar("cluster", 1000) as bar:
        bar.skip(1000)
    assert capsys.readouterr().err.splitlines() == [
        "embed       1,000 images  (900 done before)  10.0 s  10/s",
        "cluster     1,000 images  all done before",
    ]


@pytest.mark.parametrize("start", [0, 10, 45])
@pytest.mark.parametrize("pace", [1, 7, 300])
def test_the_time_left_is_within_a_factor_of_two_and_known_after_a_minute(clock, start, pace):
    """However long models take to load, and though units at work say so only now and then."""
    began, bar = clock[0], StageBar("embed", 400 * pace, "images")
    for second in range(1, 400 + start):
        clock[0] = began + second
        done = max(0, second - start) * pace
        bar.count_under_way(done - done % (3 * pace))
        truth, left = 400 + start - second, bar.counts()["left"]
        assert left is not None or second < 60
        assert (left is None) == ("left" not in bar.status()) or truth == 0
        if left is not None and truth > 6:
            assert truth / 2 <= left <= truth * 2, second


def test_a_stage_that_fails_says_how_far_it_came(clock, capsys):
    def stage():
        with stage_bar("embed", 10, "parts") as bar:
            bar.advance(3)
            clock[0] += 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage()
    assert capsys.readouterr().err == "embed       stopped after 3 of 10 parts, 1.0 s\n"


def test_a_stopped_stage_counts_what_was_under_way_apart():
    bar = StageBar("embed", None, "images")
    assert re.fullmatch(r"embed       stopped after \d.\d s", bar.summary(finished=False))
    bar.count_under_way(64)
    said = bar.summary(finished=False)
    assert re.fullmatch(r"embed       stopped after 0 images, \d.\d s, 64 more under way", said)


def test_every_line_fits_a_hundred_columns(clock, capsys):
    with stage_bar("embed", 10**9) as bar:
        bar.note("part " + "x" * 200)
        clock[0] += 1e6
        bar.advance(123_456_789)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(len(line) <= 100 for line in lines)


def test_advance_is_thread_safe():
    with stage_bar("embed", None) as bar:
        threads = [
            threading.Thread(target=lambda: [bar.advance() for _ in range(500)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert bar.done == 4000


def test_crawled_text_cannot_steer_the_terminal(capsys):
    say("key \x1b[2J\u202eevil\n[bold]x[/bold]")
    warn("tab\tand café 猫")
    assert capsys.readouterr().err.splitlines() == [
        "key \\x1b[2J\\u202eevil\\n[bold]x[/bold]",
        "warning: tab\\tand café 猫",
    ]
    assert printable("\udc80") == "\\udc80"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (99.9, "99.9 s"), (99.96, "1 min 40 s"), (3599.7, "1 h 00 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_rates():
    assert [rate(870, 10), rate(32, 10), rate(1, 20), rate(0, 1), rate(1, 0)] == [
        "87/s",
        "3.2/s",
        "0.05/s",
        "",
        "",
    ]


PROGRAM = """
import time
from shared.progress import say, stage_bar
with stage_bar("embed", 4) as bar:
    for part in range(4):
        bar.advance()
        time.sleep(0.3)
        say(f"part [{part}] done")
"""


def test_on_a_terminal_messages_stand_above_a_live_bar():
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=writer, stderr=writer, env=environment
    )
    os.close(writer)
    shown = b""
    try:
        while chunk := os.read(reader, 65536):
            shown += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    finally:
        os.close(reader)
    assert child.wait() == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "━" in plain
    assert "2/4 images" in plain
    for part in range(4):
        assert f"part [{part}] done\r\n" in plain
    assert re.search(r"embed {7}4 images  \d+\.\d s  [\d.]+/s\r\n$", plain)


def test_on_a_dumb_terminal_there_are_no_control_characters():
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "FORCE_COLOR": "1"}
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=writer, env=environment, check=True)
    os.close(writer)
    assert b"\x1b" not in os.read(reader, 65536)
    os.close(reader)


def test_a_long_message_is_wrapped_between_words_where_there_is_a_terminal():
    path = "/long/path" * 12
    program = f"from shared.progress import say, warn; warn('many words ' * 12 + '{path}'); say('')"
    reader, writer = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", program],
        stderr=writer,
        env={**os.environ, "TERM": "xterm-256color"},
        check=True,
    )
    os.close(writer)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(reader, 65536).decode())
    os.close(reader)
    first, second, third, empty = shown.splitlines()
    assert first.startswith("warning: many words many")
    assert 80 < len(first) <= 100
    assert second.endswith("many words")
    assert (third, empty) == (path, "")
