"""Configuration: plain YAML, environment variables, `--set` overrides, and one-line validation errors.

The usual order is `validate(Model, expand(apply_overrides(load_yaml(path), overrides)), file=path)`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from shared.config_errors import Explained, explain
from shared.errors import LvdError

Model = TypeVar("Model", bound=BaseModel)

_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")
_FLOAT_WITHOUT_POINT = re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+\Z")


def load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in the YAML file `path` ({} for an empty file).

    Duplicate keys, keys that are not text and syntax errors are LvdErrors with the file and line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LvdError(
            f"no configuration file at {path}: run from the folder that holds it, "
            "or name another with --config"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise LvdError(f"{path} cannot be read as a configuration file: {error}") from None
    try:
        tree = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        line, problem = _place_and_problem(error, text)
        raise LvdError(f"{path}:{line}: {problem}") from None
    except RecursionError:
        raise LvdError(f"{path} is nested too deeply to be read") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise LvdError(f"{path} must hold 'key: value' pairs at its top, not {_kind(tree)}")
    return tree


def expand(tree: Any) -> Any:
    """Return `tree` with `${VAR}` and `${VAR:-default}` in its strings replaced from the environment.

    An empty variable counts as unset, as `:-` does in the shell. Without a default an unset one
    stays as it stands: `require_expanded` complains when, and only if, the value is used. A value
    that is one variable and nothing else becomes a number or a boolean when it reads like one.
    """
    if isinstance(tree, dict):
        return {key: expand(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [expand(value) for value in tree]
    if not isinstance(tree, str):
        return tree
    text = _VARIABLE.sub(_substitute, tree)
    if text == tree or not _VARIABLE.fullmatch(tree):
        return text
    try:
        typed = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError:
        return text
    return typed if isinstance(typed, bool | int | float) else text


def require_expanded(value: str, where: str, path: Path | str) -> str:
    """Return `value`, or raise an LvdError when a variable in it is still to be set.

    `where` is the dotted key of the value, `path` the file that it stands in.
    """
    missing = _VARIABLE.search(value)
    if missing is None:
        return value
    name = missing["name"]
    raise LvdError(
        f"{where} in {path} needs the environment variable {name}: "
        f"set it to the path or URL, as in `export {name}=/data/{name.lower()}`"
    )


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `tree` with each `key.sub=value` of `overrides` set, the last one winning.

    The value is read as YAML (`0.9`, `auto`, `null`, `[a, b]`); sections on the way are made when
    they are missing. `tree` itself is left as it is.
    """
    for override in overrides:
        keys, value = _parse_override(override)
        tree = _with_value(tree, keys, value, override)
    return tree


def validate(
    model: type[Model],
    tree: Any,
    *,
    file: Path | str,
    at: str = "",
    overrides: Sequence[str] = (),
) -> Model:
    """Return `tree` as a `model`, or raise an LvdError that says in one line what is wrong with it.

    The line names the full dotted key (`at` is the prefix of `tree`'s own keys), the place, what
    was found, what is allowed and the nearest valid name. The place is `file`, or the one of
    `overrides` (as given to `apply_overrides`) that set the value.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        found = explain(model, error)
        key = f"{at}.{found.key}".strip(".") if found.key else at
        subject = f"{key} in" if key else ""
        source = source_of(key, overrides) or source_of(found.key, overrides)
        source = source or _sources_within(key, found, overrides) or str(file)
        line = f"{subject} {source} {found.problem}".strip()
    raise LvdError(" ".join(line.split()))


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by their dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in flat(branch, f"{prefix}.{name}" if prefix else name).items()
    }


def source_of(key: str, overrides: Sequence[str]) -> str:
    """Return the override, as `--set key.sub=value`, that set a dotted key; "" where none did."""
    for override in reversed(overrides):
        name = override.partition("=")[0].strip()
        if key == name or key.startswith((f"{name}.", f"{name}[")):
            return f"--set {override}"
    return ""


def _sources_within(key: str, found: Explained, overrides: Sequence[str]) -> str:
    """Return the overrides that made an unknown section, or that a section's problem speaks of."""
    sources = []
    for override in overrides:
        name = override.partition("=")[0].strip()
        own = re.escape(name.rpartition(".")[2])
        made = found.unknown and name.startswith((f"{key}.", f"{found.key}."))
        named = name.startswith(f"{key}.") and re.search(rf"\b{own}\b", found.problem)
        if made or named:
            sources.append(f"--set {override}")
    return " and ".join(sources)


def _substitute(match: re.Match[str]) -> str:
    value = os.environ.get(match["name"], "")
    if value:
        return value
    return match[0] if match["default"] is None else match["default"]


def _parse_override(override: str) -> tuple[list[str], Any]:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(key and key == key.strip() for key in keys):
        raise LvdError(f"--set {override!r} is not of the form key.sub=value")
    try:
        return keys, yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        problem = _place_and_problem(error, text)[1]
        raise LvdError(
            f"--set {override!r} has a value that is not YAML ({problem}): put quotes around "
            f"the text, as in --set '{name}=\"{text}\"'"
        ) from None


def _with_value(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> dict[str, Any]:
    key, *rest = keys
    if rest:
        below = tree.get(key)
        if below is not None and not isinstance(below, dict):
            raise LvdError(
                f"--set {override!r} reaches into {key!r}, which is {_kind(below)} and has no "
                f"{rest[0]!r}: set {key} as a whole"
            )
        value = _with_value(below or {}, rest, value, override)
    return {**tree, key: value}


def _kind(value: Any) -> str:
    names = {list: "a list", dict: "a section", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a single value")


def _place_and_problem(error: Exception, text: str) -> tuple[int, str]:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark is not None else 1
    if isinstance(error, yaml.reader.ReaderError):
        line = text[: error.position].count("\n") + 1
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not valid YAML"
    return line, " ".join(str(problem).split())


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate and non-text keys, and reads 1e-4 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                problem = f"the key {key!r} is not text: put quotes around it"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                problem = f"the key {key!r} stands here and on line {seen[key]}: keep one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen[key] = line
        return super().construct_mapping(node, deep=deep)

    def construct_whole_map(self, node: yaml.MappingNode) -> dict[Hashable, Any]:
        """Build the mapping at once, so that a recursive alias is an error and not a loop."""
        return self.construct_mapping(node, deep=True)


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _StrictLoader.construct_whole_map)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", _FLOAT_WITHOUT_POINT, list("-+0123456789")
)
