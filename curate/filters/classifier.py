"""Filters by a classifier that sees the picture: an embedder whose task is to classify."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from curate.filters.head import Head, dim_of
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError, nearest


class ClassifierSettings(BaseModel):
    """A classifier, whose probabilities are stored as an embedder's vectors are, and what counts."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """The name of an embedder with `task: classify`, or a timm model folder with a classifier."""
    labels: list[int | str] = Field(min_length=1)
    """Classes whose probabilities add up to the score: from 0, or by the names in the model's config."""

    def require(self, embedder: EmbedderSettings) -> None:
        """Raise ValueError for a model that gives no classes."""
        if embedder.task != "classify" or embedder.kind not in ("timm", "onnx"):
            raise ValueError(
                "gives no classes: name one of kind timm or onnx with `task: classify`"
            )

    def load(self, place: str) -> LoadedLabels:
        """Return the labels, with where they were said."""
        return LoadedLabels(f"{place}.classifier", self.labels)


@dataclass(frozen=True)
class LoadedLabels:
    """Labels of a classifier; travels to the workers."""

    where: str
    labels: list[int | str]

    @property
    def about(self) -> list[object]:
        """What decides its scores, JSON-able."""
        return [self.labels]

    def compile(self, embedder: EmbedderSettings, threads: int) -> Head:
        """Return what adds up the classes. LvdError for a label that the model does not have."""
        weight = np.zeros((1, dim_of(embedder, threads)))
        names = _names_of(embedder) if any(isinstance(each, str) for each in self.labels) else []
        for label in self.labels:
            weight[0, self._index(label, names, embedder.model, weight.shape[1])] = 1
        return Head(weight, np.zeros(1), np.zeros(1, np.int64), normalises=False)

    def _index(self, label: int | str, names: list[str], model: str, count: int) -> int:
        if isinstance(label, str):
            if label in names:
                return names.index(label)
            known = f"it has {', '.join(names[:20])}" if names else "it names none: give indices"
            raise LvdError(
                f"{self.where}: {model} has no class {label!r}{nearest(label, names)}: {known}"
            )
        if not 0 <= label < count:
            raise LvdError(f"{self.where}: {model} has no class {label}: it has 0 to {count - 1}")
        return label


def _names_of(embedder: EmbedderSettings) -> list[str]:
    if embedder.kind != "timm":
        return []
    from shared.embedders.timm_embedder import label_names

    return label_names(embedder)
