"""Pydantic's list of validation errors as one sentence about one setting, for `shared.config`."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, RootModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from shared.errors import nearest

_EXPECTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a section of 'key: value' pairs",
    "model_type": "a section of 'key: value' pairs",
    "model_attributes_type": "a section of 'key: value' pairs",
    "path_type": "a path",
    "none_required": "null",
}


@dataclass(frozen=True)
class Explained:
    """The dotted key of the first wrong setting, what is wrong, and whether no setting has that name."""

    key: str
    problem: str
    unknown: bool


@dataclass(frozen=True)
class _Finding:
    """One pydantic error with its place split into real keys and union branches."""

    keys: tuple[str | int, ...]
    branches: tuple[tuple[int, str], ...]
    error: ErrorDetails
    fields: tuple[str, ...]


def explain(model: type[BaseModel], error: ValidationError) -> Explained:
    """Return the first error of `error`, which `model` raised, in plain words."""
    details = error.errors(include_url=False)
    findings = [_locate(model, detail) for detail in details]
    alternatives = _alternatives(findings)
    chosen = alternatives[0]
    unknown = chosen.error["type"] == "extra_forbidden"
    return Explained(_dotted(chosen.keys), _problem(alternatives, chosen), unknown)


def _locate(model: type[BaseModel], error: ErrorDetails) -> _Finding:
    annotation: Any = model
    keys: list[str | int] = []
    branches: list[tuple[int, str]] = []
    fields: tuple[str, ...] = ()
    for step in error["loc"]:
        annotation = _plain(annotation)
        members = _union_members(annotation)
        if members:
            branches.append((len(keys), str(step)))
            annotation = _branch(members, str(step))
            continue
        if step == "[key]":
            continue
        keys.append(step)
        fields = ()
        if _is_model(annotation):
            by_name = {f.alias or name: f for name, f in annotation.model_fields.items()}
            fields = tuple(by_name)
            annotation = by_name[step].annotation if step in by_name else Any
        else:
            arguments = get_args(annotation)
            item = -1 if get_origin(annotation) is dict else 0
            annotation = arguments[item] if arguments else Any
    return _Finding(tuple(keys), tuple(branches), error, fields)


def _plain(annotation: Any) -> Any:
    """Strip Annotated, Optional, type aliases and root models: they leave no trace in a place."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, type) and issubclass(annotation, RootModel):
            annotation = annotation.model_fields["root"].annotation
        elif hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        elif get_origin(annotation) in (Union, types.UnionType):
            members = [a for a in get_args(annotation) if a is not type(None)]
            if len(members) != 1:
                return annotation
            annotation = members[0]
        else:
            return annotation


def _union_members(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [a for a in get_args(annotation) if a is not type(None)]
    return []


def _branch(members: Sequence[Any], label: str) -> Any:
    """Return the member of a union that pydantic calls `label`: a class, a tag, or `list[...]`."""
    for member in members:
        plain = _plain(member)
        tags = [m.tag for m in getattr(member, "__metadata__", ()) if isinstance(m, Tag)]
        if label in tags or (_is_model(plain) and plain.__name__ == label):
            return plain
        if _is_model(plain) and any(
            label in get_args(field.annotation)
            for field in plain.model_fields.values()
            if get_origin(field.annotation) is Literal
        ):
            return plain
    for member in members:
        origin = get_origin(_plain(member))
        if origin is not None and label.startswith(f"{getattr(origin, '__name__', '?')}["):
            return _plain(member)
    return Any


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _unknown_beside_missing(findings: Sequence[_Finding], first: _Finding) -> _Finding:
    """A misspelt required key is reported as missing first: the misspelling says more."""
    if first.error["type"] == "missing":
        for finding in findings:
            if finding.error["type"] == "extra_forbidden" and finding.keys[:-1] == first.keys[:-1]:
                return finding
    return first


def _alternatives(findings: Sequence[_Finding], level: int = 0) -> list[_Finding]:
    """Return the first error, or at a union those of all its branches when none fits in shape.

    A branch fits in shape when its errors lie inside the value and not at the value itself; the
    one with the fewest errors is then the one that was meant. `level` counts unions passed.
    """
    first = findings[0]
    if len(first.branches) <= level:
        return [_unknown_beside_missing(findings, first)]
    depth = first.branches[level][0]
    branches: dict[str, list[_Finding]] = {}
    for finding in findings:
        if finding.keys[:depth] == first.keys[:depth] and len(finding.branches) > level:
            branches.setdefault(finding.branches[level][1], []).append(finding)
    inside = [b for b in branches.values() if all(len(f.keys) > depth for f in b)]
    if inside:
        return _alternatives(min(inside, key=len), level + 1)
    return [f for branch in branches.values() for f in branch if len(f.keys) == depth]


def _dotted(keys: Sequence[str | int]) -> str:
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in keys).lstrip(".")


def _problem(alternatives: Sequence[_Finding], chosen: _Finding) -> str:
    error = chosen.error
    if error["type"] == "extra_forbidden":
        name = str(chosen.keys[-1])
        allowed = f": allowed here: {', '.join(chosen.fields)}" if chosen.fields else ""
        return f"is not a setting{nearest(name, chosen.fields)}{allowed}"
    if error["type"] == "missing":
        return "is missing: it has no default"
    if error["type"] in ("value_error", "assertion_error"):
        return f"is wrong: {error['msg'].partition(', ')[2]}"
    if error["type"] == "union_tag_not_found":
        return f"is missing its {error['ctx']['discriminator']}"
    value = error["ctx"]["tag"] if error["type"] == "union_tag_invalid" else error["input"]
    expected = list(dict.fromkeys(_expected(f.error) for f in alternatives))
    hint = _nearest_literal(value, alternatives)
    if not isinstance(value, str) and {"string_type"} == {f.error["type"] for f in alternatives}:
        hint = _quotes(value)
    return f"is {_shown(value)}, but must be {' or '.join(expected)}{hint}"


def _expected(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "literal_error":
            return _one_of(error)
        case "union_tag_invalid":
            return (
                f"a section whose {context['discriminator']} is one of {context['expected_tags']}"
            )
        case "greater_than_equal":
            return f"at least {_number(context['ge'])}"
        case "greater_than":
            return f"more than {_number(context['gt'])}"
        case "less_than_equal":
            return f"at most {_number(context['le'])}"
        case "less_than":
            return f"less than {_number(context['lt'])}"
        case "too_short" | "string_too_short":
            return f"at least {context['min_length']} long"
        case "too_long" | "string_too_long":
            return f"at most {context['max_length']} long"
        case kind if kind in _EXPECTED:
            return _EXPECTED[kind]
    return error["msg"].removeprefix("Input should be ").removeprefix("Value should be ")


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_of(error: ErrorDetails) -> str:
    options = error["ctx"]["expected"]
    return f"one of {options}" if _names(error)[1:] else options


def _names(error: ErrorDetails) -> list[str]:
    """Return the quoted names in pydantic's `'a', 'b' or 'c'`."""
    text = error.get("ctx", {}).get("expected") or error.get("ctx", {}).get("expected_tags") or ""
    return text.split("'")[1::2]


def _nearest_literal(value: Any, alternatives: Sequence[_Finding]) -> str:
    if not isinstance(value, str):
        return ""
    return nearest(value, {name for f in alternatives for name in _names(f.error)})


def _quotes(value: Any) -> str:
    return ": put it in quotes" if not isinstance(value, dict | list | type(None)) else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, bool | type(None)):
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
