"""What a page says first: sentences, and what looks wrong with the command that would mend it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Remedy:
    """What looks wrong, and the command that would mend it, if one would."""

    what: str
    command: str = ""


@dataclass(frozen=True)
class Verdict:
    """Sentences, and what looks wrong."""

    sentences: list[str]
    remedies: list[Remedy]
