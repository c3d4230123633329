"""Gives every image a key that is the same on every run and machine (see the design, "Keys")."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence


def shown(name: str) -> str:
    """Return a file name as valid text: bytes that are not UTF-8 stand as `\\xff`."""
    try:
        name.encode()
        return name
    except UnicodeEncodeError:
        pass
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for themselves
        raw = name.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


def stem(member: str) -> str:
    """Return what a WebDataset reader calls the key: the path up to the base name's first dot."""
    folder, slash, base = member.rpartition("/")
    return folder + slash + (base.partition(".")[0] or base)


def within_part(members: Sequence[str]) -> list[str]:
    """Return a unique key for each member of a part, given in the part's own order.

    That is the member's stem. Where a stem repeats, each image with it takes its full name instead,
    and where that repeats too, the later ones `#2`, `#3`.
    """
    stems = [stem(member) for member in members]
    uses = Counter(stems)
    taken = {s if uses[s] == 1 else m for s, m in zip(stems, members, strict=True)}
    seen: Counter[str] = Counter()
    keys = []
    for s, member in zip(stems, members, strict=True):
        keys.append(s if uses[s] == 1 else _numbered(member, seen, taken))
    return keys


def numbered(names: Sequence[str]) -> list[str]:
    """Return the names, made unique: where one repeats, the later ones take `#2`, `#3`."""
    seen: Counter[str] = Counter()
    taken = set(names)
    return [_numbered(name, seen, taken) for name in names]


def bucket(path: str, parts: int) -> int:
    """Return which of `parts` a file belongs to: by a hash of its path, whatever lies beside it."""
    digest = hashlib.blake2b(shown(path).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % parts


def _numbered(name: str, seen: Counter[str], taken: set[str]) -> str:
    seen[name] += 1
    if seen[name] == 1:
        return name
    while f"{name}#{seen[name]}" in taken:
        seen[name] += 1
    key = f"{name}#{seen[name]}"
    taken.add(key)
    return key
