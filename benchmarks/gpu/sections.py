"""The sections, in the order of their worth, and what each needs of the minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from benchmarks.gpu.section import Section

HERE = "benchmarks.gpu"
VITS14 = "vit_small_patch14_dinov2"


def _step(recipe: str, *, compiled: bool, needs: float, most: float) -> Section:
    mode = "compiled" if compiled else "eager"
    target = f"{HERE}.steps:measure"
    return Section(f"{recipe}-{mode}", target, (recipe, compiled), needs, most)


def _embedding(name: str, model: str) -> Section:
    return Section(f"embed-{name}", f"{HERE}.embedding:measure", (model,), needs=20, most=60)


# What is compiled takes up to minutes before its first step, so that an eager vitl14 comes first,
# and what is least asked for last. Seconds are those of a card; nobody has yet measured them.
SECTIONS = (
    Section("about", f"{HERE}.about:measure", needs=0, most=60),
    Section("tests", f"{HERE}.card_tests:measure", needs=20, most=90),
    Section("rates", f"{HERE}.rates:measure", needs=15, most=60),
    _step("vitl14", compiled=False, needs=30, most=75),
    _step("vitl14", compiled=True, needs=60, most=150),
    _step("vits16", compiled=True, needs=40, most=120),
    Section("kernels", f"{HERE}.kernels:measure", ("vitl14", True), needs=45, most=120),
    Section("resident", f"{HERE}.resident:measure", (True,), needs=40, most=120),
    _embedding("vits14", VITS14),
    _embedding("vitl14", "vit_large_patch14_dinov2"),
    Section("embed-compiled", f"{HERE}.embedding:measure_compiled", (VITS14,), needs=60, most=120),
    Section("neighbours", f"{HERE}.neighbours:measure", needs=20, most=60),
    _step("vitl16-short", compiled=True, needs=60, most=150),
    _step("vits16", compiled=False, needs=25, most=75),
    _step("vitl16-short", compiled=False, needs=30, most=75),
    Section("resident-eager", f"{HERE}.resident:measure", (False,), needs=30, most=90),
)


def chosen(
    sections: Sequence[Section], names: Sequence[str] | None, *, quick: bool = False
) -> list[Section]:
    """Return the sections of these names in their own order; all where no names are given.

    A quick run has no limits but its minutes: a busy CPU may take longer than a card.
    """
    some = [section for section in sections if not names or section.name in names]
    return [replace(section, needs=0, most=inf) for section in some] if quick else some
