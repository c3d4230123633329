"""An order of images that looks random, and depends on a seed and on no other image."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import UInt64

from curate.catalogue.collection import KEYS_TOGETHER, Collection, Numbers


def hash_keys(crawl: Collection, numbers: Numbers, seed: int) -> UInt64[np.ndarray, " n"]:
    """Return `keyed_hash` of the keys of images."""
    hashes = np.empty(len(numbers), np.uint64)
    for at in range(0, len(numbers), KEYS_TOGETHER):
        keys = crawl.keys(numbers[at : at + KEYS_TOGETHER])
        hashes[at : at + KEYS_TOGETHER] = [keyed_hash(key, seed) for key in keys]
    return hashes


def keyed_hash(key: str, seed: int) -> int:
    """Return 64 bits of blake2b of a key under a seed."""
    digest = hashlib.blake2b(
        key.encode(), digest_size=8, key=str(seed).encode(), person=b"lvd-order"
    ).digest()
    return int.from_bytes(digest, "big")
