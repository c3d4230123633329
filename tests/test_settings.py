"""No setting is dead, and none hides: the models of `pipelines.yaml` are held against the code."""

import ast
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from curate.settings import PipelineSettings, PipelinesFile
from shared.config import apply_overrides
from train.evaluation.settings import EvalSettings
from train.recipe import Recipe
from train.visualise.settings import VisualiseSettings

ROOTS = (PipelinesFile, Recipe, EvalSettings, VisualiseSettings)
"""What `--set` speaks of, of the commands that have it."""
ROOT = Path(__file__).parent.parent
BASES = ("BaseModel", "Settings")


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the models that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from models_in(inner)


def reachable(root: type[BaseModel]) -> set[type[BaseModel]]:
    """Return the models that a file's sections are validated by."""
    found, fresh = set(), {root}
    while fresh:
        found |= fresh
        fields = [field for model in fresh for field in model.model_fields.values()]
        fresh = {model for field in fields for model in models_in(field.annotation)} - found
    return found


def sources() -> Iterator[tuple[Path, ast.Module]]:
    """Yield the modules of all packages."""
    for package in ("curate", "shared", "train"):
        for path in (ROOT / package).rglob("*.py"):
            yield path, ast.parse(path.read_text())


def reads() -> tuple[set[tuple[str, str]], dict[Path, set[str]]]:
    """Return attributes that are read, each with what stands before its dot, and names by module.

    The names are all attributes that a module reads, and all texts in it.
    """
    dotted, names = set(), {}
    for path, tree in sources():
        names[path] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                before = getattr(node.value, "attr", getattr(node.value, "id", ""))
                dotted.add((before, node.attr))
                names[path].add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names[path].add(node.value)
    return dotted, names


def test_every_setting_is_read():
    """Behind `settings.` or the name of its section, in a module that names its model, or beside that as text."""
    dotted, names = reads()
    texts = {path: path.read_text() for path in names}
    there = set().union(*map(reachable, ROOTS))
    sections = {
        (inner, name)
        for model in there
        for name, field in model.model_fields.items()
        for inner in models_in(field.annotation)
    }
    dead, count = [], 0
    for model in there:
        family = [each.__name__ for each in there if issubclass(each, model)]
        home = ROOT.joinpath(*model.__module__.split(".")).parent
        near = {
            name
            for path, found in names.items()
            if path.parent == home or any(each in texts[path] for each in family)
            for name in found
        }
        befores = {"settings", "_recipe", "each", *(name for of, name in sections if of is model)}
        for name in set(model.model_fields) - near:
            if not any((before, name) in dotted for before in befores):
                dead.append(f"{model.__name__}.{name}")
        count += len(model.model_fields)
    assert sorted(dead) == ["PipelinesFile.recipes"]  # which stage two reads from the file
    assert count > 250


def test_every_model_of_settings_is_reached():
    """What is called settings stands in some section, or is the base of what does."""
    there = set().union(*map(reachable, ROOTS))
    known = {base.__name__ for model in there for base in model.__mro__}
    named = {
        node.name
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and node.name.endswith("Settings")
        and any(isinstance(base, ast.Name) and base.id.endswith(BASES) for base in node.bases)
    }
    assert named - known == set()
    assert len(named) > 40


def test_every_setting_of_a_pipeline_is_named_in_the_docs():
    told = "".join(
        path.read_text()
        for path in (ROOT / "README.md", ROOT / "pipelines.yaml", *(ROOT / "docs").glob("*.md"))
    )
    there = set().union(*(model.model_fields for model in reachable(PipelineSettings)))
    assert sorted(name for name in there if not re.search(rf"\b{name}\b", told)) == []


@pytest.mark.parametrize("key", ["dedup.threshold", "export.resize.smaller_side", "cluster.drift"])
def test_a_setting_is_reached_by_its_whole_key(key):
    tree = apply_overrides({"pipelines": {"p": {}}}, [f"pipelines.p.{key}=1"])
    value = tree["pipelines"]["p"]
    for name in key.split("."):
        value = value[name]
    assert value == 1
    assert isinstance(PipelinesFile(**tree).pipelines["p"], BaseModel)
