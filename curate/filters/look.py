"""What is taken of pictures beside their vectors, for filters and lists: each look a unit of a part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import Image


@dataclass(frozen=True)
class Look:
    """Looks at every picture of a crawl, where a run asks for what it takes."""

    name: str
    """Of its folder in WORK, and of its units' file."""
    version: int
    side: int
    """A JPEG may be decoded smaller, so that its shorter side is no less than this in pixels."""
    columns: pa.Schema
    """What it takes; null where there is no picture."""
    take: Callable[[Image.Image], dict[str, Any]]
    """Takes it of an RGB picture; safe in threads."""
    reported: bool = True
    """Whether `images.parquet` shows it."""

    @property
    def file(self) -> str:
        """The file of a unit: a row for each image of a part."""
        return f"{self.name}.parquet"
