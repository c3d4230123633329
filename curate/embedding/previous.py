"""What was computed of an earlier state of a part, image by image by the hash of its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float16

from curate.catalogue.content import Copy, earlier_content
from curate.catalogue.part_files import FACTS, VECTORS
from curate.embedding.request import EmbedRequest
from curate.filters.looks import LOOKS
from shared.embedders.settings import EmbedderSettings
from shared.pictures.images import Header
from shared.storage.commits import committed


@dataclass(frozen=True)
class Previous:
    """The facts of an earlier state by sha256, its vectors by each embedder that is wanted, looks."""

    rows: dict[str, tuple[int, Header | None, str, float]]
    """Row, header, problem and contrast of an image."""
    vectors: tuple[Float16[np.ndarray, "_ _"], ...]
    looks: dict[str, list[dict[str, Any]]]
    """By name and row; without those that were not taken of that state."""


def find_previous(
    request: EmbedRequest, copy: Copy, wanted: Sequence[EmbedderSettings]
) -> Previous | None:
    """Return what there is of the newest earlier state, where all that is wanted of it is there."""
    content = earlier_content(request.work, copy.place)
    if content is None or content == copy.content:
        return None
    folders = [request.vectors(embedder) / content for embedder in wanted]
    if any(committed(folder) is None for folder in [request.facts / content, *folders]):
        return None
    columns = ["sha256", "width", "height", "format", "problem", "contrast"]
    facts = pq.read_table(request.facts / content / FACTS, columns=columns).to_pylist()
    rows = {
        fact["sha256"]: (row, _header(fact), fact["problem"], fact["contrast"])
        for row, fact in enumerate(facts)
        if fact["sha256"] and not fact["problem"]
    }
    looks = {
        name: pq.read_table(unit / LOOKS[name].file).to_pylist()
        for name in request.looks
        if committed(unit := request.look(name) / content) is not None
    }
    return Previous(rows, tuple(_load(folder / VECTORS) for folder in folders), looks)


def _header(fact: dict[str, Any]) -> Header | None:
    if fact["width"] is None:
        return None
    return Header(fact["width"], fact["height"], fact["format"])


def _load(path: Path) -> Float16[np.ndarray, "n d"]:
    vectors: np.ndarray = np.load(path, mmap_mode="r")
    return vectors
