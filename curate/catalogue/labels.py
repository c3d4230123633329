"""What a person has said of images of an earlier result, as constraints of the next run.

`keep`: the image stays, as one does that an earlier result exported (`exported.py`): it stands for itself
and for its copies, whatever is better or more similar to a seed, and only filters, lists and holdouts
drop it. `drop`: it is `unsafe`, as on a list of its sha256. `apart`: two images are not copies: both
stand for themselves, and where calibration looks at them they are two pictures. Images are known by
their bytes. `lvd-curate label` makes the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from curate.catalogue.exported import ANEW, EXPORTED, Exported
from curate.filters.lists import LISTS, CompiledList, ListSettings, compile_lists
from shared.errors import LvdError
from shared.storage.commits import building, commit, committed
from shared.storage.files import digest_file, fingerprint

VERSION = 1
KEEP, DROP, APART = LABELS = ("keep", "drop", "apart")
SCHEMA = pa.schema(
    [
        ("label", pa.string()),
        ("key", pa.string()),
        ("sha256", pa.string()),
        ("other", pa.string()),
        ("other_sha256", pa.string()),
    ]
)
"""`other`, and its hash, are of the second image of `apart`, and null for all else."""
_NAME = "labels"
Pairs = Int64[np.ndarray, "p 2"]


@dataclass(frozen=True)
class CompiledLabels:
    """Labels as a run uses them; travels to the workers as paths."""

    source: str
    """The file, as errors call it."""
    folder: Path
    content: str
    """Stands for all of them."""
    counts: dict[str, int]
    """By label."""
    dropped: CompiledList | None
    """What is labelled `drop`, as a list."""

    @property
    def kept(self) -> Exported | None:
        """What is labelled `keep`, as images that stay."""
        if not self.counts[KEEP]:
            return None
        return Exported(self.source, self.folder / "keep.parquet", self.content)

    def find_apart(self, parts: Iterator[tuple[int, pa.Table]]) -> list[tuple[int, int]]:
        """Return the numbers of the first images by `parts` of the two contents of each `apart`.

        `parts` yields the number of each part's first image, with its `sha256`. Pairs of which one is
        not there are left out.
        """
        pairs = pq.read_table(self.folder / "apart.parquet")
        hashes = pa.concat_arrays([pairs[name].combine_chunks() for name in pairs.column_names])
        found = np.full(len(hashes), -1, np.int64)
        for start, facts in parts:
            at = pc.index_in(hashes, facts["sha256"].combine_chunks())
            fresh = at.is_valid().to_numpy(zero_copy_only=False) & (found < 0)
            found[fresh] = start + at.fill_null(0).to_numpy()[fresh]
        both = found.reshape(2, -1).T
        return [(one, other) for one, other in both.tolist() if min(one, other) >= 0]


def read_labels(path: Path) -> pa.Table:
    """Return the rows of a file of labels, as `SCHEMA` says; LvdError where it is none."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        said = "is not there" if isinstance(error, FileNotFoundError) else "is no Parquet file"
        raise LvdError(f"labels: {path} {said}: make one with `lvd-curate label`") from error
    if table.schema.names != SCHEMA.names:
        raise LvdError(f"labels: {path} holds no labels: make it with `lvd-curate label`")
    return table.cast(SCHEMA)


def compile_labels(path: Path, work: Path, scratch: Path) -> CompiledLabels:
    """Return the labels of a file, laid below `work` where they are not there already."""
    content = digest_file(path) if path.is_file() else ""
    table = read_labels(path)
    unit = work / LISTS / fingerprint([_NAME, VERSION]) / content[:32]
    of = {label: table.filter(pc.equal(table["label"], label)) for label in LABELS}
    if committed(unit) is None:
        with building(unit, scratch) as beside:
            keep = of[KEEP]
            places = pa.array(np.full(len(keep), ANEW))
            kept = pa.table([keep["key"], keep["sha256"], places], names=EXPORTED.names)
            pq.write_table(kept.cast(EXPORTED), beside / "keep.parquet")
            pq.write_table(of[APART].select(["sha256", "other_sha256"]), beside / "apart.parquet")
            pq.write_table(of[DROP].select(["sha256"]), beside / "drop.parquet")
            commit(beside, unit, {name: len(rows) for name, rows in of.items()})
    dropped = None
    if len(of[DROP]):
        settings = ListSettings(kind="sha256", path=str(unit / "drop.parquet"))
        [dropped] = compile_lists({_NAME: settings}, work, scratch)
    counts = {name: len(rows) for name, rows in of.items()}
    return CompiledLabels(str(path), unit, content[:16], counts, dropped)
