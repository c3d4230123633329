"""Every command that README.md and docs/ show: it parses, and where it needs the sample only, it works.

A fence ```` ```sh ```` is run as it stands, one page after another on one small sample; one with a reason
behind `sh`, such as `sh needs-data`, is parsed by click, of `make` what that would call.
"""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from test_demo import TINY

from curate.cli import main as curate
from curate.sample.make import make_sample
from train.cli import main as train

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "docs" / "tasks.md"
"""Run last: it takes images out of the sample's result."""
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {TASKS}), TASKS]
REASONS = {"", "needs-data", "takes-minutes"}
TOOLS = {".venv/bin/lvd-curate": curate, ".venv/bin/lvd-train": train}
ELSEWHERE = {"demo", "loop", "completion", "eval"}
"""Commands whose examples are run by other tests, or need labelled pictures."""
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMAGES = 160
QUICK = {
    "calibrate": {"originals": 8, "crawl_sample": 80},
    "estimate": {"pairs": 5},
    "report": {"pictures": False},
}


def fences(page):
    """Return the word behind each fence of a page, and what is in it."""
    return FENCE.findall(page.read_text())


def commands(text):
    """Return the commands of a fence, without remarks, lines that go on joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r" +# .*", "", line).strip())]


def shown(page, *, run):
    """Return the commands of a page that are run here, or those that are not."""
    found = []
    for kind, text in fences(page):
        language, _, reason = kind.partition(" ")
        if language == "sh":
            assert reason in REASONS
            found += commands(text) if bool(reason) != run else []
    return found


@cache
def called_by_make(command):
    """Return what `make` would call of the two command lines."""
    words = ["make", "--dry-run", "--always-make", *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    found = re.findall(r"^(?:.*-m train\.launch|\S*/lvd-\w+) .*$", done.stdout, re.MULTILINE)
    return [re.sub(r"^.*-m train\.launch", ".venv/bin/lvd-train", line) for line in found]


def parse(command):
    """Have click parse a call of one of the two command lines."""
    tool, name, *words = shlex.split(command)
    group = TOOLS[tool]
    if name.startswith("-"):
        assert name == "--help"
        return
    parent = click.Context(group, info_name=group.prog)
    with group.commands[name].make_context(name, words, parent=parent) as context:
        assert context.params


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses(page):
    for command in [*shown(page, run=True), *shown(page, run=False)]:
        if command.startswith("make "):
            for call in called_by_make(command):
                parse(call)
        elif command.split()[0] in TOOLS:
            parse(command)
    for kind, text in fences(page):
        assert kind or not re.search(r"^(make|\.venv/bin/\S+) ", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_link_that_the_text_names_is_there(page):
    text = page.read_text()
    for tool, name in re.findall(r"`[^`\n]*?lvd-(curate|train) ([a-z]+)", text):
        assert name in {"curate": curate, "train": train}[tool].commands
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def anchors(page):
    """Return the anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with a small sample curated and trained on, as the pages take it for given."""
    folder = tmp_path_factory.mktemp("docs")
    config = yaml.safe_load((ROOT / "pipelines.yaml").read_text())
    config["recipes"] = {"tiny": TINY}
    config["pipelines"]["sample"] |= QUICK
    (folder / "pipelines.yaml").write_text(yaml.safe_dump(config))
    (folder / ".venv").symlink_to(sys.prefix)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(make_sample, "__defaults__", (0, IMAGES))
        patch.setenv("LVD_CURATE_RUN_EXECUTOR", "inline")
        for name in ("UPDATE", "CALIBRATE", "AUDIT"):
            patch.setenv(f"LVD_CURATE_{name}_EXECUTOR", "inline")
        call(".venv/bin/lvd-curate run --pipeline sample --out runs/curate/sample")
        call(
            ".venv/bin/lvd-train run --recipe tiny --shards runs/curate/sample/shards "
            "--out runs/train/sample"
        )
        yield folder


def call(command):
    """Run a command as it stands; the two command lines in this process."""
    tool, *words = shlex.split(command)
    if tool not in TOOLS:
        subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, timeout=120)
        return
    # As LVD_CURATE_RUN_EXECUTOR would have it, for those who type; here no Ray is needed.
    prefix = Path(tool).name.replace("-", "_").upper()
    done = CliRunner().invoke(TOOLS[tool], words, auto_envvar_prefix=prefix)
    assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"


def first_examples(group, command):
    """Return the lines of a help down to the first call of the command itself."""
    text = re.sub(r"\\\n\s*", "", command.help)
    found = []
    for line in re.findall(rf"^\s*({group.prog} .*)$", text, re.MULTILINE):
        found.append(f".venv/bin/{re.split(r' {3,}', line)[0]}")
        if line.split()[1] == command.name:
            return found
    raise AssertionError(f"{command.name} has no example")


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("group", [curate, train], ids=lambda group: group.prog)
def test_the_first_example_of_every_help_works_on_the_sample(group):
    for name, command in group.commands.items():
        if name not in ELSEWHERE:
            for example in first_examples(group, command):
                call(example)


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("page", [p for p in PAGES if shown(p, run=True)], ids=lambda p: p.name)
def test_every_command_that_needs_the_sample_only_works(page):
    for command in shown(page, run=True):
        call(command)
