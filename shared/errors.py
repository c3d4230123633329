"""The one exception that a user is meant to read, and the hint that goes with a wrong name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LvdError(Exception):
    """A failure that the user can mend: one line that names the thing, the place and the remedy."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest of `candidates`, or an empty string."""
    close = difflib.get_close_matches(name, sorted(candidates), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
