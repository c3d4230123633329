"""Runs of `lvd-curate` on a crawl whose truth is known, and what they keep of what is wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from benchmarks.truth import read_images, read_truth, root_of
from curate.cli import main
from curate.selection.evenness import measure_evenness
from shared.errors import LvdError
from shared.storage.files import fingerprint

CONFIG = Path(__file__).parents[1] / "pipelines.yaml"
LEAN = ("report.pictures=false", "export.format=list", "estimate.pairs=0")
"""Settings of runs whose tables alone are read."""


@dataclass(frozen=True)
class Kept:
    """What a run keeps."""

    images: int
    precision: float
    """The share of the kept images that is wanted."""
    recall: float
    """The share of the wanted pictures of which an image is kept, the picture or a copy."""
    kinds: Counter[str]
    """Wanted images, and the others by kind."""
    classes: float | None
    """The effective number of classes of the wanted images; None where truth has no labels."""


@dataclass(frozen=True)
class Labelled:
    """A crawl, its truth by stem, and which of its images are wanted."""

    crawl: str
    truth: dict[str, dict]
    column: str
    value: str

    @classmethod
    def read(cls, folder: Path, wanted: str, parts: Sequence[str] = ()) -> Labelled:
        """Return what is in `crawl` and `truth.csv` of a folder; `wanted` is COLUMN=VALUE of truth."""
        column, _, value = wanted.partition("=")
        tars = f"/{{{','.join(parts)}}}.tar" if parts else ""
        return cls(f"{folder}/crawl{tars}", read_truth(folder / "truth.csv"), column, value)

    def is_wanted(self, stem: str) -> bool:
        """Return whether an image is of what the seed shows."""
        return self.truth[stem].get(self.column) == self.value

    def wanted_pictures(self, images: dict[str, dict]) -> set[str]:
        """Return the pictures that the wanted ones of some images are, or are copies of."""
        return {root_of(self.truth, stem) for stem in images if self.is_wanted(stem)}

    def score(self, images: dict[str, dict]) -> Kept:
        """Return what is kept of all crawled `images`."""
        kept = {stem: row for stem, row in images.items() if row["decision"] == "kept"}
        kinds = Counter(
            "wanted" if self.is_wanted(stem) else self.truth[stem]["kind"] for stem in kept
        )
        labels = Counter(self.truth[stem].get("label") for stem in kept if self.is_wanted(stem))
        counts = np.array(list(labels.values()))
        return Kept(
            images=len(kept),
            precision=kinds["wanted"] / max(1, len(kept)),
            recall=len(self.wanted_pictures(kept)) / max(1, len(self.wanted_pictures(images))),
            kinds=kinds,
            classes=None
            if None in labels
            else measure_evenness(counts, len(counts))["effective_clusters"],
        )


@dataclass(frozen=True)
class Runs:
    """Runs of one crawl and its seeds, each with settings of its own; all share what they compute."""

    work: Path
    words: tuple[str, ...]
    """Of the command line: pipeline, crawl and seeds."""

    def run(self, *settings: str) -> Path:
        """Run with these settings; return OUT. Raises LvdError, with what was printed, where it fails."""
        out = self.work / "out" / fingerprint([self.words, settings])[:16]
        words = [
            *("run", f"--config={CONFIG}", *self.words, "--executor=inline"),
            *(f"--out={out}", f"--work={self.work}/work"),
            *(f"--set={setting}" for setting in (*LEAN, *settings)),
        ]
        result = CliRunner().invoke(main, words)
        if result.exit_code:
            raise LvdError(f"{' '.join(settings)}: {result.output}") from result.exception
        return out

    def images(self, *settings: str) -> dict[str, dict]:
        """Return what becomes of the images with these settings, by stem."""
        return read_images(self.run(*settings))


def write_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def describe_kinds(kinds: Counter[str]) -> str:
    """Return how many there are of each kind, what is wanted first."""
    others = [(name, count) for name, count in kinds.most_common() if name != "wanted"]
    return ", ".join(f"{count:,} {name}" for name, count in [("wanted", kinds["wanted"]), *others])
