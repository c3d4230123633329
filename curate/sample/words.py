"""Words for the drawn pictures of the built-in sample."""

from __future__ import annotations

import random

_TEXT = (
    "account amount annual archive average balance budget capacity centre change chapter "
    "client column contract cost current daily data delivery demand design detail district "
    "energy export figure forecast growth harbour history import income index issue item "
    "joint journal key label level list market measure meeting method model month north "
    "number order output page paper percent period plan price product profile project "
    "quarter rate record region report result river sample season section service share "
    "signal source south station status storage summary supply survey system table target "
    "total traffic transfer unit update value volume water week"
)
WORDS = tuple(_TEXT.split())


def phrase(chosen: random.Random, fewest: int, most: int) -> str:
    """Return between `fewest` and `most` random words."""
    return " ".join(chosen.choices(WORDS, k=chosen.randint(fewest, most)))
