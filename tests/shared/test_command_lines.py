"""Both command lines: an example in every help that parses, tracebacks on request, completion."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from curate.cli import main as curate
from shared.commands import called
from train.cli import main as train

COMMANDS = [(group, name) for group in (curate, train) for name in group.commands]


def examples(group, command):
    """Return the words of the calls that a help shows, without remarks behind them."""
    text = re.sub(r"\\\n\s*", "", command.help)
    found = re.findall(rf"^\s*({group.prog} {command.name}(?: .*)?)$", text, re.MULTILINE)
    return [shlex.split(re.split(r" {3,}", line)[0])[2:] for line in found]


@pytest.mark.parametrize(("group", "name"), COMMANDS, ids=[f"{g.prog} {n}" for g, n in COMMANDS])
def test_every_help_has_an_example_and_every_example_parses(group, name):
    command = group.commands[name]
    said = CliRunner().invoke(group, [name, "--help"])
    assert said.exit_code == 0
    calls = examples(group, command)
    if name == "completion":
        return  # its example is a line of a shell's
    assert calls
    for words in calls:
        parent = click.Context(group, info_name=group.prog)
        with command.make_context(name, list(words), parent=parent) as context:
            assert context.params


@pytest.mark.parametrize("group", [curate, train], ids=lambda group: group.prog)
def test_an_error_is_one_line_and_with_debug_its_traceback_comes_first(group, tmp_path):
    words = ["status", str(tmp_path / "nowhere")]
    line = CliRunner().invoke(group, words).stderr
    assert line.count("\n") == 1
    assert line.startswith(f"{group.prog}: ")
    told = CliRunner().invoke(group, [*words, "--debug"])
    assert told.exit_code == 2
    assert told.stderr.startswith("Traceback (most recent call last):\n")
    assert told.stderr.endswith(line)


@pytest.mark.parametrize(
    ("group", "typed", "expected"),
    [
        (curate, "lvd-curate sea", ["plain", "search"]),
        (curate, "lvd-curate search --dec", ["plain", "--decision"]),
        (curate, "lvd-curate search --decision irr", ["plain", "irrelevant"]),
        (curate, "lvd-curate status runs", ["file", "runs"]),
        (train, "lvd-train vis", ["plain", "visualise"]),
    ],
)
def test_a_shell_is_told_what_may_follow(group, typed, expected):
    variable = f"_{group.prog.replace('-', '_').upper()}_COMPLETE"
    words = typed.split(" ")
    asked = {variable: "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    said = CliRunner().invoke(group, [], env=asked, prog_name=group.prog)
    assert said.output.splitlines() == [",".join(expected)]


@pytest.mark.parametrize("group", [curate, train], ids=lambda group: group.prog)
def test_the_script_for_bash_is_one(group, tmp_path):
    script = CliRunner().invoke(group, ["completion", "bash"]).output
    assert f"complete -o nosort -F _{group.prog.replace('-', '_')}_completion" in script
    (tmp_path / "script").write_text(script)
    bash = shutil.which("bash")
    assert bash
    subprocess.run([bash, "-n", tmp_path / "script"], check=True, env=os.environ, timeout=60)
    for shell in ("zsh", "fish"):
        assert group.prog in CliRunner().invoke(group, ["completion", shell]).output


def test_help_waits_for_nothing_heavy():
    heavy = "numpy", "pyarrow", "duckdb", "torch", "ray", "faiss"
    code = f"import sys, curate.cli, train.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, timeout=120
    )
    assert done.stdout == b"[]\n"


STOPS = """
import atexit, sys
import click
from shared.commands import Commands

class Module:
    def __del__(self):
        print("module taken down")

module = Module()
atexit.register(print, "atexit")

@click.group(cls=Commands, prog="prog")
def main():
    pass

@main.command()
def work():
    try:
        print("working")
        raise KeyboardInterrupt
    finally:
        print("cleaned up")

main()
"""


def test_ctrl_c_says_what_is_safe_and_ends_without_taking_down_the_interpreter():
    words = [sys.executable, "-c", STOPS, "work"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 130
    assert done.stdout == "working\ncleaned up\natexit\n"
    assert done.stderr == (
        "prog: stopped; what was finished is safe: run the same command again to go on\n"
    )


def test_a_command_to_paste_is_called_as_it_can_be_from_this_folder(tmp_path, monkeypatch):
    program = tmp_path / "it's here" / ".venv" / "bin" / "lvd-curate"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "prefix", str(program.parent.parent))
    monkeypatch.chdir(tmp_path)
    assert shlex.split(called("lvd-curate")) == ["it's here/.venv/bin/lvd-curate"]
    monkeypatch.chdir(program.parents[2])
    assert called("lvd-curate") == ".venv/bin/lvd-curate"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert called("lvd-curate") == "lvd-curate"
