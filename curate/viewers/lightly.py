"""The images of a finished run as a folder that LightlyStudio loads, by a script that lies in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from curate.viewers.csv_table import write_csv
from curate.viewers.images import Row

SCRIPT, VECTORS = "studio.py", "vectors.npy"


def write_lightly(
    folder: Path,
    blocks: Iterable[list[Row]],
    vectors: Callable[[list[Row]], Float32[np.ndarray, "n d"]] | None,
) -> None:
    """Write `images.csv`, `studio.py` and, if asked for, `vectors.npy`: float32, a row for each line."""
    shutil.copyfile(Path(__file__).with_name(SCRIPT), folder / SCRIPT)
    if vectors is None:
        write_csv(folder, blocks)
        return
    raw = folder / ".vectors"
    width = 0

    def noted() -> Iterator[list[Row]]:
        nonlocal width
        with raw.open("wb") as file:
            for rows in blocks:
                if rows:
                    found = vectors(rows)
                    width = found.shape[1]
                    file.write(found.tobytes())
                yield rows

    write_csv(folder, noted())
    np.save(folder / VECTORS, np.memmap(raw, np.float32, "r").reshape(-1, width))
    raw.unlink()
