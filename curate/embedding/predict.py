"""Stage predict: the scores of stored vectors that filters ask for.

A head, captions or labels are first compiled into a `Head`, before anything is embedded, so that
what does not fit the embedder is said at once. Then a map over parts reads their vectors, and no
picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.catalogue.part_files import ROW_GROUP, SCORES, VALID, VECTORS
from curate.embedding.stage import EmbeddedParts
from curate.filters.head import Head
from curate.filters.scores import Source, score_column
from curate.stage import Runner, Stage, Unit
from shared.embedders.embedder import identity
from shared.embedders.settings import EmbedderSettings
from shared.storage.commits import digest_of
from shared.storage.files import fingerprint

VERSION = 1
HEAD = "head.npz"
ROWS = 8_192
"""Vectors that are looked at together."""


@dataclass(frozen=True)
class Predictor:
    """What scores the vectors of an embedder, for the filter of that name."""

    name: str
    embedder: EmbedderSettings
    source: Source


@dataclass(frozen=True)
class Compiled:
    """A predictor whose head is there; `address` stands for its scores."""

    name: str
    embedder: EmbedderSettings
    head: Path
    address: str


def compile_predictors(
    runner: Runner, predictors: Sequence[Predictor], threads: int
) -> list[Compiled]:
    """Return predictors with their heads. Raises LvdError for one that its embedder does not fit."""
    done = []
    for each in predictors:
        stage = Stage("head", VERSION, identity(each.embedder), each.source.about)
        runner.run(stage, write_head, [Unit("all", (each.source, each.embedder, threads))])
        head = runner.folder(stage) / "all" / HEAD
        done.append(Compiled(each.name, each.embedder, head, stage.address))
    return done


def predict(
    runner: Runner, embedded: EmbeddedParts, predictors: Sequence[Compiled]
) -> EmbeddedParts:
    """Return embedded parts with the scores of their images."""
    request = embedded.request
    files: dict[str, list[Path]] = {content: [] for content in embedded.contents}
    for each in predictors:
        stage = Stage("predict", VERSION, each.address, each.name)
        vectors = {content: request.vectors(each.embedder) / content for content in files}
        units = {
            # By the vectors' own bytes: they may have been made anew, on another processor.
            content: Unit(fingerprint([content, digest_of(folder)]), (folder, each.head, each.name))
            for content, folder in vectors.items()
        }
        runner.run(stage, write_scores, list(units.values()))
        for content, unit in units.items():
            files[content].append(runner.folder(stage) / unit.name / SCORES)
    return replace(embedded, predicted=files)


def write_head(
    source: Source, embedder: EmbedderSettings, threads: int, *, out: Path
) -> dict[str, Any]:
    """Write `head.npz`."""
    head = source.compile(embedder, threads)
    head.save(out / HEAD)
    return {"outputs": len(head.weight)}


def write_scores(vectors: Path, head: Path, name: str, *, out: Path) -> dict[str, Any]:
    """Write the score of each image of a part, float32, null without a vector."""
    compiled = Head.load(head)
    stored, valid = np.load(vectors / VECTORS, mmap_mode="r"), np.load(vectors / VALID)
    blocks = [stored[at : at + ROWS] for at in range(0, len(stored), ROWS)]
    scores = np.concatenate([np.empty(0), *map(compiled.score, blocks)]).astype(np.float32)
    table = pa.table({score_column(name): pa.array(scores, pa.float32(), mask=~valid)})
    pq.write_table(table, out / SCORES, row_group_size=ROW_GROUP, compression="zstd")
    return {"images": len(scores)}
