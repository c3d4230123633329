"""Derives every seed of a run from what it belongs to, so that no generator's state is ever saved."""

from __future__ import annotations

import hashlib


def derive(*parts: int | str) -> int:
    """Return a seed in [0, 2^63) that depends on all `parts` and their order, on any machine."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
