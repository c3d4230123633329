import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from shared.config import apply_overrides, expand, load_yaml, require_expanded, validate
from shared.errors import LvdError


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Dataset(Strict):
    path: str | list[str]
    format: Literal["auto", "folder", "tar", "parquet"] = "auto"
    folder_parts: int = Field(32, ge=1)


class Timm(Strict):
    kind: Literal["timm"]
    model: str
    threshold: float | Literal["auto"] = "auto"


class Descriptor(Strict):
    kind: Literal["descriptor"]
    bins: int = Field(8, ge=1, le=64)


class Dedup(Strict):
    threshold: Annotated[float, Field(ge=-1, le=1)] | Literal["auto"] = "auto"
    groups: Literal["greedy", "components"] = "greedy"
    probes: int | None = None
    policy: list[str] = []

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, value: list[str]) -> list[str]:
        if "random" in value:
            raise ValueError("random is no policy:\nname a column")
        return value


class Pipeline(Strict):
    embedder: str = "descriptor"
    dedup: Dedup = Dedup()
    filters: list[Dedup] | None = None


class File(Strict):
    datasets: dict[str, Dataset] = {}
    embedders: dict[str, Annotated[Timm | Descriptor, Field(discriminator="kind")]] = {}
    pipelines: dict[str, Pipeline | None] = {}
    either: Timm | Descriptor | None = None


def problem(tree: dict, **keywords) -> str:
    with pytest.raises(LvdError) as caught:
        validate(File, tree, file="pipelines.yaml", **keywords)
    line = str(caught.value)
    assert "\n" not in line
    return line


def dedup(**settings) -> dict:
    return {"pipelines": {"default": {"dedup": settings}}}


def write(folder: Path, text: str) -> Path:
    path = folder / "pipelines.yaml"
    path.write_text(text)
    return path


# YAML


def test_a_file_is_read_and_an_empty_one_is_an_empty_mapping(tmp_path: Path):
    assert load_yaml(write(tmp_path, "a: {b: [1, 1e-4, no]}")) == {"a": {"b": [1, 1e-4, False]}}
    assert load_yaml(write(tmp_path, "# nothing\n")) == {}


def test_merge_keys_may_be_overridden(tmp_path: Path):
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n"
    assert load_yaml(write(tmp_path, text))["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' stands here and on line 1"),
        ("a:\n  b: 1\n  c: 1\n  b: 2\n", 4, "'b' stands here and on line 2"),
        ("a: 1\nb: [1, 2\n", 3, "expected"),
        ("a: 1\n\tb: 2\n", 2, "cannot start any token"),
        ("a: 1\nno: 2\n", 2, "put quotes around it"),
        ("a: 1\nb: \x01\n", 2, "not allowed"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "python/object"),
        ("a: &a\n  b: *a\n", 1, "recursive"),
        ("a: &a [*a]\n", 1, "recursive"),
    ],
)
def test_a_fault_in_the_yaml_is_one_line_with_file_and_line(tmp_path, text, line, words):
    path = write(tmp_path, text)
    with pytest.raises(LvdError) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_mapping_or_no_text_is_refused(tmp_path: Path):
    with pytest.raises(LvdError, match=r"no configuration file at .*--config"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(LvdError, match="not a list"):
        load_yaml(write(tmp_path, "- a\n"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(LvdError, match="cannot be read"):
        load_yaml(tmp_path / "binary.yaml")
    with pytest.raises(LvdError, match="nested too deeply"):
        load_yaml(write(tmp_path, "a: " + "[" * 5000 + "]" * 5000))


# Environment variables


def test_variables_are_replaced_everywhere_and_typed_when_alone(monkeypatch):
    monkeypatch.setenv("ROOT", "/data")
    monkeypatch.setenv("SIDE", "64")
    monkeypatch.setenv("FULL", "true")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    tree = {
        "path": ["${ROOT}/a", "x-${ROOT}-${SIDE}"],
        "side": "${SIDE}",
        "full": "${FULL}",
        "alone": "${ROOT}",
        "default": "${UNSET:-0.5}",
        "empty": "${EMPTY:-runs/work}",
        "kept": "${UNSET}/a",
        "text": "$ROOT {a,b}",
        "number": 3,
    }
    before = repr(tree)
    assert expand(tree) == {
        "path": ["/data/a", "x-/data-64"],
        "side": 64,
        "full": True,
        "alone": "/data",
        "default": 0.5,
        "empty": "runs/work",
        "kept": "${UNSET}/a",
        "text": "$ROOT {a,b}",
        "number": 3,
    }
    assert repr(tree) == before


@pytest.mark.parametrize("value", ["2024-01-01", "a: b", "[1", "*.tar", "null"])
def test_a_variable_that_is_no_number_stays_text(monkeypatch, value):
    monkeypatch.setenv("VALUE", value)
    assert expand("${VALUE}") == value


def test_an_unset_variable_is_named_when_its_value_is_used(monkeypatch):
    monkeypatch.delenv("IMAGENET22K", raising=False)
    where = "datasets.imagenet22k.path"
    value = expand("${IMAGENET22K}/*.tar")
    with pytest.raises(LvdError) as caught:
        require_expanded(value, where, Path("pipelines.yaml"))
    assert str(caught.value).startswith(
        "datasets.imagenet22k.path in pipelines.yaml needs the environment variable IMAGENET22K: "
    )
    assert require_expanded("/data/x", where, "pipelines.yaml") == "/data/x"


# Overrides


def test_overrides_are_yaml_and_make_what_is_missing_and_leave_the_input():
    tree = {"dedup": {"threshold": 0.5, "groups": "greedy"}, "note": None}
    overrides = ["dedup.threshold=0.9", "a.b.c=[a, b]", "note.x=null", "url=s3://b/x=1", "r=1e-4"]
    assert apply_overrides(tree, overrides) == {
        "dedup": {"threshold": 0.9, "groups": "greedy"},
        "note": {"x": None},
        "a": {"b": {"c": ["a", "b"]}},
        "url": "s3://b/x=1",
        "r": 1e-4,
    }
    assert tree == {"dedup": {"threshold": 0.5, "groups": "greedy"}, "note": None}
    assert apply_overrides(tree, ["note=a", "note=auto"])["note"] == "auto"
    assert apply_overrides(tree, []) == tree


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dedup.threshold", "not of the form key.sub=value"),
        ("=3", "not of the form"),
        ("dedup..threshold=3", "not of the form"),
        (".a=3", "not of the form"),
        ("a b. c=3", "not of the form"),
        ("path=[a", "put quotes around"),
        ("path=*.tar", "put quotes around"),
        ("seed.x=3", "reaches into 'seed', which is a single value"),
    ],
)
def test_a_bad_override_is_one_line(override, words):
    with pytest.raises(LvdError) as caught:
        apply_overrides({"seed": 0}, [override])
    assert words in str(caught.value)
    assert override in str(caught.value)
    assert "\n" not in str(caught.value)


# Validation


def test_a_valid_tree_becomes_the_model():
    tree = {"datasets": {"a": {"path": "x"}}, "embedders": {"d": {"kind": "descriptor"}}}
    assert validate(File, tree, file="f").embedders["d"].bins == 8


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        (
            {"dataset": {}},
            "dataset in pipelines.yaml is not a setting (did you mean 'datasets'?): "
            "allowed here: datasets, embedders, pipelines, either",
        ),
        (
            {"datasets": {"a": {"path": "x", "frmat": "tar"}}},
            "datasets.a.frmat in pipelines.yaml is not a setting (did you mean 'format'?): "
            "allowed here: path, format, folder_parts",
        ),
        (
            {"datasets": {"a": {"pth": "x"}}},
            "datasets.a.pth in pipelines.yaml is not a setting (did you mean 'path'?): "
            "allowed here: path, format, folder_parts",
        ),
        (
            dedup(treshold=0.5),
            "pipelines.default.dedup.treshold in pipelines.yaml is not a setting "
            "(did you mean 'threshold'?): allowed here: threshold, groups, probes, policy",
        ),
        (
            {"pipelines": {"p": {"filters": [{}, {"prob": 1}]}}},
            "pipelines.p.filters[1].prob in pipelines.yaml is not a setting "
            "(did you mean 'probes'?): allowed here: threshold, groups, probes, policy",
        ),
        (
            {"embedders": {"e": {"kind": "timm", "modl": "x"}}},
            "embedders.e.modl in pipelines.yaml is not a setting (did you mean 'model'?): "
            "allowed here: kind, model, threshold",
        ),
        (
            {"either": {"kind": "descriptor", "bin": 3}},
            "either.bin in pipelines.yaml is not a setting (did you mean 'bins'?): "
            "allowed here: kind, bins",
        ),
        (
            {"datasets": {"a": {}}},
            "datasets.a.path in pipelines.yaml is missing: it has no default",
        ),
        (
            {"datasets": {"a": {"path": "x", "format": "tarr"}}},
            "datasets.a.format in pipelines.yaml is 'tarr', but must be one of "
            "'auto', 'folder', 'tar' or 'parquet' (did you mean 'tar'?)",
        ),
        (
            {"embedders": {"e": {"kind": "tim"}}},
            "embedders.e in pipelines.yaml is 'tim', but must be a section whose 'kind' is one of "
            "'timm', 'descriptor' (did you mean 'timm'?)",
        ),
        ({"embedders": {"e": {}}}, "embedders.e in pipelines.yaml is missing its 'kind'"),
        (
            dedup(threshold="outo"),
            "pipelines.default.dedup.threshold in pipelines.yaml is 'outo', but must be a number "
            "or 'auto' (did you mean 'auto'?)",
        ),
        (
            dedup(threshold=1.5),
            "pipelines.default.dedup.threshold in pipelines.yaml is 1.5, but must be at most 1 "
            "or 'auto'",
        ),
        (
            {"embedders": {"e": {"kind": "timm", "model": "m", "threshold": [1]}}},
            "embedders.e.threshold in pipelines.yaml is [1], but must be a number or 'auto'",
        ),
        (
            {"datasets": {"a": {"path": "x", "folder_parts": 0}}},
            "datasets.a.folder_parts in pipelines.yaml is 0, but must be at least 1",
        ),
        (
            {"datasets": {"a": {"path": "x", "folder_parts": "many"}}},
            "datasets.a.folder_parts in pipelines.yaml is 'many', but must be a whole number",
        ),
        (
            {"datasets": {"a": {"path": "x", "folder_parts": 1.5}}},
            "datasets.a.folder_parts in pipelines.yaml is 1.5, but must be a whole number",
        ),
        (
            {"datasets": {"a": {"path": 7}}},
            "datasets.a.path in pipelines.yaml is 7, but must be text or a list",
        ),
        (
            {"datasets": {"a": {"path": ["x", 7]}}},
            "datasets.a.path[1] in pipelines.yaml is 7, but must be text: put it in quotes",
        ),
        (
            {"datasets": ["a"]},
            "datasets in pipelines.yaml is ['a'], but must be a section of 'key: value' pairs",
        ),
        (
            {"datasets": {"a": "x"}},
            "datasets.a in pipelines.yaml is 'x', but must be a section of 'key: value' pairs",
        ),
        (
            {"datasets": {"a": None}},
            "datasets.a in pipelines.yaml is null, but must be a section of 'key: value' pairs",
        ),
        (
            dedup(policy=["random"]),
            "pipelines.default.dedup.policy in pipelines.yaml is wrong: random is no policy: "
            "name a column",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_with_key_file_fault_and_remedy(tree, line):
    assert problem(tree) == line


def test_a_long_value_is_shortened():
    assert len(problem(dedup(groups="x" * 10_000))) < 200


def test_the_prefix_leads_the_key():
    with pytest.raises(LvdError, match=r"^pipelines\.default\.dedup\.prob in f is not a setting"):
        validate(Pipeline, {"dedup": {"prob": 1}}, file="f", at="pipelines.default")
    with pytest.raises(LvdError, match=r"^pipelines\.default in f is 3, but must be a section"):
        validate(Pipeline, 3, file="f", at="pipelines.default")
    with pytest.raises(LvdError, match=r"^f is 3, but must be a section"):
        validate(Pipeline, 3, file="f")


@pytest.mark.parametrize("at", ["", "pipelines.default"])
def test_a_wrong_setting_is_traced_to_the_override_that_made_it(at):
    overrides = ["embedder=x", "dedup.groups=gready", "dedup=null"]
    tree = apply_overrides({}, overrides[:2])
    with pytest.raises(LvdError, match=r"dedup\.groups in --set dedup\.groups=gready is 'gready'"):
        validate(Pipeline, tree, file="f", at=at, overrides=overrides[:2])
    with pytest.raises(LvdError, match=r"dedup in --set dedup=null is null, but"):
        validate(Pipeline, apply_overrides({}, overrides), file="f", at=at, overrides=overrides)


@pytest.mark.parametrize("at", ["", "pipelines.default"])
def test_an_unknown_section_is_traced_to_the_override_that_made_it(at):
    overrides = ["dedpu.groups=greedy"]
    tree = apply_overrides({"embedder": "x"}, overrides)
    with pytest.raises(LvdError, match=r"dedpu in --set dedpu\.groups=greedy is not a setting"):
        validate(Pipeline, tree, file="f", at=at, overrides=overrides)


def test_configuration_imports_no_heavy_library():
    heavy = ["torch", "ray", "numpy", "faiss", "skimage", "matplotlib", "datasets"]
    code = f"import sys, shared.config; assert not set({heavy}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
