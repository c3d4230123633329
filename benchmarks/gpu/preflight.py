"""Says which packages this Python lacks; imports nothing but the standard library."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "numpy": "numpy",
    "pillow": "PIL",
    "safetensors": "safetensors",
    "pyyaml": "yaml",
    "fsspec": "fsspec",
    "click": "click",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "pydantic-core": "pydantic_core",
    "annotated-types": "annotated_types",
    "typing-inspection": "typing_inspection",
    "typing-extensions": "typing_extensions",
    "jaxtyping": "jaxtyping",
    "wadler-lindig": "wadler_lindig",
    "rich": "rich",
    "markdown-it-py": "markdown_it",
    "mdurl": "mdurl",
    "pygments": "pygments",
    "tenacity": "tenacity",
}
"""Distributions and their modules, those that they need in turn included."""

FOR_TESTS = {"pytest": "pytest", "pluggy": "pluggy", "iniconfig": "iniconfig"}
"""What the `gpu` tests need besides; without these the other sections are measured."""


def preflight(constraints: Path) -> str | None:
    """Return one line that names what is missing, pinned as in the file; None where nothing is."""
    missing = pinned(lacking(NEEDED), constraints)
    if not missing:
        return None
    names = " ".join(missing + pinned(lacking(FOR_TESTS), constraints))
    return (
        f"{sys.executable} lacks {len(missing)} packages: {sys.executable} -m pip install --no-deps {names} "
        "(without a network: bring the wheels, see benchmarks/README.md)"
    )


def lacking(packages: Mapping[str, str]) -> list[str]:
    """Return the distributions whose modules are not there."""
    return [name for name, module in packages.items() if find_spec(module) is None]


def pinned(names: list[str], constraints: Path) -> list[str]:
    """Return `name==version` by the constraints; the bare name where they give no one version."""
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pins = [line.split(";")[0].strip() for line in lines]
    chosen = []
    for name in names:
        known = {pin for pin in pins if re.match(rf"{re.escape(name)}==", pin)}
        chosen.append(known.pop() if len(known) == 1 else name)
    return chosen
