"""Scores pooled features by how well they rank a gallery for queries: mean average precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from shared.errors import LvdError
from shared.progress import warn
from train.evaluation import protocol
from train.evaluation.file_features import ImageFile, View, file_features
from train.evaluation.retrieval.relevance import Relevance, read_benchmark
from train.evaluation.scores import Score, share_scored
from train.evaluation.settings import RetrievalSettings

if TYPE_CHECKING:
    from train.frozen.model import FrozenModel, JoinedModel

MOST_COSINES = 1 << 25
"""Cosines that are held and ranked at once: as many queries make a block as there is room for."""
FIRST = 10
"""Ranks that the mean precision is taken over."""


def retrieval(
    model: JoinedModel, data: str, settings: RetrievalSettings, cache: Path
) -> list[Score]:
    """Return mAP and mP@10 for each protocol of the benchmark in the folder `data`.

    The layouts are those of `read_benchmark`. Images are seen once, as the model's own transform
    has them, and ranked by the cosine of pooled features; of equally similar ones the first in the
    gallery comes first. Queries without a positive are left out and counted in a warning, and so
    are images that cannot be decoded: these are in no query's ranking. Raises LvdError where the
    data do not fit, and where no query of a protocol has a positive.
    """
    benchmark = read_benchmark(data, settings.crop_queries)
    queries, asked = _pooled(model, benchmark.queries, "--data (queries)", settings, cache)
    gallery, there = _pooled(model, benchmark.gallery, "--data (gallery)", settings, cache)
    rows = asked.nonzero()[:, 0].tolist()
    scored: dict[str, list[tuple[float, float]]] = {name: [] for name in benchmark.protocols}
    for row, order in zip(rows, rankings(queries[asked], gallery), strict=True):
        present = order[there[order]].cpu().numpy()
        for name, relevance in benchmark.protocols.items():
            positions = positions_of(present, relevance[row])
            if len(positions):
                scored[name].append((average_precision(positions), precision(positions, FIRST)))
    scores = []
    for name, values in scored.items():
        if not values:
            raise LvdError(f"--data: no query in {data!r} has a positive ({name}): add some")
        if missing := len(rows) - len(values):
            warn(f"--data: {missing} of {len(rows)} queries have no positive ({name})")
        boxes = any(query.box is not None for query in benchmark.queries)
        differs = protocol.retrieval(model.parts, boxes)
        note = "; ".join(filter(None, [share_scored(len(values), len(asked), "queries"), *differs]))
        mean_ap, mean_precision = np.mean(values, axis=0).tolist()
        scores += [
            Score("retrieval", "mAP", mean_ap, name, note=note),
            Score("retrieval", f"mP@{FIRST}", mean_precision, name),
        ]
    return scores


def rankings(
    queries: Float[Tensor, "q e"], gallery: Float[Tensor, "n e"]
) -> Iterator[Int[Tensor, " n"]]:
    """Yield for each query the rows of the gallery by falling cosine; equal ones by row.

    No matrix holds more than MOST_COSINES, or one query's.
    """
    queries, gallery = normalize(queries, dim=1), normalize(gallery, dim=1)
    for block in queries.split(max(MOST_COSINES // len(gallery), 1)):
        yield from (block @ gallery.T).sort(dim=1, descending=True, stable=True).indices


def positions_of(
    order: Int[np.ndarray, " n"], relevance: Relevance
) -> Int[np.ndarray, " positives"]:
    """Return the ranks of the positives, from 0 and rising, as if junk were not in the gallery."""
    kept = order[~np.isin(order, relevance.junk)]
    return np.flatnonzero(np.isin(kept, relevance.positive))


def average_precision(positions: Int[np.ndarray, " positives"]) -> float:
    """Return the area under the precision-recall curve by the trapezoidal rule.

    The mean over positives of (j / r_j + (j + 1) / (r_j + 1)) / 2, for the j-th one at rank r_j,
    both from 0: the mean of the precisions just before and at it, the former being 1 at rank 0.
    This is Oxford's measure (Philbin et al., CVPR 2007, "Object retrieval with large vocabularies
    and fast spatial matching", section 2), and that of its revision (arXiv 1803.11285).
    """
    found = np.arange(len(positions))
    at = (found + 1) / (positions + 1)
    before = np.where(positions == 0, 1.0, found / np.maximum(positions, 1))
    return float((before + at).mean() / 2)


def precision(positions: Int[np.ndarray, " positives"], k: int) -> float:
    """Return the share of positives in the first `k` ranks, or up to the last positive's rank.

    The shorter of the two, so that few positives do not bound it (arXiv 1803.11285's mP@k).
    """
    depth = min(k, int(positions[-1]) + 1)
    return float((positions < depth).sum() / depth)


def _pooled(
    model: JoinedModel,
    images: Sequence[ImageFile],
    role: str,
    settings: RetrievalSettings,
    cache: Path,
) -> tuple[Float[Tensor, "n e"], Bool[Tensor, " n"]]:
    """Return the pooled features, each part's normalised, and which images could be read."""
    kept = [
        file_features(
            part,
            images,
            _own_view(part),
            role=role,
            cache=cache,
            batch_size=settings.batch_size,
            workers=settings.workers,
        )
        for part in model.parts
    ]
    device = model.parts[0].device
    parts = [torch.from_numpy(np.array(part.values)).to(device).float() for part in kept]
    # What decodes at one part's scale could fail at another's.
    whole = torch.from_numpy(np.all([part.sizes[:, 0] > 0 for part in kept], axis=0)).to(device)
    return torch.cat([normalize(part, dim=1) for part in parts], dim=1), whole


def _own_view(model: FrozenModel) -> View:
    return View(
        "pooled",
        model.prepare,
        lambda pixels: model.tokens(pixels).pooled,
        model.transform.reduce_to,
    )
