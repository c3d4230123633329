"""What a filter of quality is: a setting, the columns that it reads, and what fails it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

Finding = tuple[Bool[np.ndarray, " n"], Callable[[int], str]]
"""Which of n images fail, and what says of the image in a row why."""


@dataclass(frozen=True)
class Filter:
    """Finds images of low quality by their facts or by the measures of their pictures."""

    setting: str
    """Its name in `quality`; it is off where the setting is None."""
    columns: tuple[str, ...]
    """What `find` reads."""
    find: Callable[[pa.Table, Any], Finding]
    """Looks at images, given the setting or what `resolve` makes of it."""
    resolve: Callable[[pa.Table, Any], Any] | None = None
    """Makes of the columns of the whole crawl and the setting what JSON can hold."""
    may_lack: str = ""
    """A column that a crawl may lack altogether, which is then an error."""
