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


def nodes() -> Iterator[ast.AST]:
    """Yield the syntax of all packages."""
    for package in ("curate", "shared", "train"):
        for path in (ROOT / package).rglob("*.py"):
            yield from ast.walk(ast.parse(path.read_text()))


def test_every_setting_is_read():
    """As an attribute, or by its name as text."""
    read = set()
    for node in nodes():
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            read.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            read.add(node.value)
    there = set().union(*map(reachable, ROOTS))
    settings = {(model.__name__, name) for model in there for name in model.model_fields}
    assert sorted(f"{model}.{name}" for model, name in settings if name not in read) == []
    assert len(settings) > 250


def test_every_model_of_settings_is_reached():
    """What is called settings stands in some section, or is the base of what does."""
    there = set().union(*map(reachable, ROOTS))
    known = {base.__name__ for model in there for base in model.__mro__}
    named = {
        node.name
        for node in nodes()
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
