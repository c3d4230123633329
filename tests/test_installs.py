"""Every line that says how an extra is installed leaves this project as it is: editable and pinned."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXTS = [
    *(ROOT / name for name in ("README.md", "Makefile", ".ci/run", "pipelines.yaml")),
    *(path for folder in ("docs", "benchmarks") for path in sorted((ROOT / folder).rglob("*.md"))),
    *(
        path
        for name in ("curate", "train", "shared")
        for path in sorted((ROOT / name).rglob("*.py"))
    ),
]
INSTALL = re.compile(r"pip install ([^`\n]*?'?\.\[[^`\n,]*)")
EDITABLE, PINNED = (
    re.compile(r"(^| )(-e|--editable) "),
    re.compile(r"(-c|--constraint) constraints.txt "),
)


def replaces_project(text: str) -> list[str]:
    """Return the installations in a text that put a copy in place of the project, or other versions."""
    asked = INSTALL.findall(text)
    return [each for each in asked if not EDITABLE.search(each) or not PINNED.search(each)]


def test_an_installation_keeps_the_project_editable_and_pinned() -> None:
    wrong = {str(path.relative_to(ROOT)): replaces_project(path.read_text()) for path in TEXTS}
    assert {name: asked for name, asked in wrong.items() if asked} == {}


def test_an_installation_that_replaces_the_project_is_found() -> None:
    assert replaces_project("uv pip install '.[onnx]'")
    assert replaces_project("`uv pip install -c constraints.txt '.[s3]'`")
    assert replaces_project("pip install -e '.[s3]'")
    assert not replaces_project("uv pip install -c constraints.txt -e '.[s3]', or not")
    installs = [each for path in TEXTS for each in INSTALL.findall(path.read_text())]
    assert len(installs) > 5  # it sees those that are there
