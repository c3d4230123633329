"""Finds a recipe in pipelines.yaml and fills in what it takes from others; knows no setting."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.config import apply_overrides, expand, flat, load_yaml
from shared.errors import LvdError, nearest

UNSET = re.compile(r"\$\{(\w+)")
"""A variable that the environment does not have."""


def recipe_tree(config: Path, name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings of the recipe `name` of the file `config`, not validated.

    A recipe with `like: OTHER` holds only what it changes of that one; `key.sub=value` overrides
    come on top. Raises LvdError, in one line, where there is no such recipe.
    """
    known = load_yaml(config).get("recipes") or {}
    if not isinstance(known, dict):
        raise LvdError(f"recipes in {config} must be a section of 'name: recipe' pairs")
    tree = expand(apply_overrides(_resolved(known, name, config, ()), overrides))
    for key, value in flat(tree).items():
        if isinstance(value, str) and (variable := UNSET.search(value)):
            raise LvdError(
                f"recipes.{name}.{key} in {config} is for you to say: {variable[1]}=... in the "
                f"environment, or --set {key}=..."
            )
    return tree


def describe_origin(config: Path, name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return a recipe's `name`, its `parent`, and as `changes` what it says otherwise: JSON-able.

    The parent is the recipe that `like` names; of one without, the recipe itself as it stands in
    the file, so that only overrides differ. Changes are `{key: [the parent's, its own]}`, None for
    what is not said, as it is said: without the environment and defaults.
    """
    known = load_yaml(config).get("recipes") or {}
    parent = str(known[name].get("like", name))
    theirs = flat(_resolved(known, parent, config, ()))
    ours = flat(apply_overrides(_resolved(known, name, config, ()), overrides))
    changes = {
        key: [theirs.get(key), ours.get(key)]
        for key in sorted(theirs.keys() | ours.keys())
        if key != "note" and theirs.get(key) != ours.get(key)
    }
    return {"name": name, "parent": parent, "changes": changes}


def _resolved(
    known: dict[str, Any], name: str, config: Path, seen: tuple[str, ...]
) -> dict[str, Any]:
    if name not in known:
        asked = f" (of {seen[-1]}.like)" if seen else ""
        raise LvdError(
            f"no recipe {name!r}{asked} in {config}{nearest(name, known)}: "
            f"it has {', '.join(sorted(known)) or 'none'}"
        )
    if name in seen:
        raise LvdError(f"recipes.{name}.like in {config} leads back to itself")
    tree = known[name]
    if not isinstance(tree, dict):
        raise LvdError(f"recipes.{name} in {config} must be a section of 'key: value' pairs")
    other = tree.get("like")
    if other is None:
        return tree
    own = {key: value for key, value in tree.items() if key != "like"}
    return _merged(_resolved(known, str(other), config, (*seen, name)), own)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            value = _merged(under, value)
        merged[key] = value
    return merged
