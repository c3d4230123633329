"""Filters by what captions say of a picture: CLIP's zero-shot classifier on stored vectors."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from curate.filters.head import Head
from shared.embedders.settings import EmbedderSettings

Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class PromptSettings(BaseModel):
    """Captions, some of which count (CLIP, arXiv 2103.00020, section 3.1.4).

    The score is the probability of those `for`, by a softmax over all captions of the cosines with
    the picture times the model's own scale.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    wanted: list[Prompt] = Field(alias="for", min_length=1)
    against: list[Prompt] = Field(min_length=1)
    templates: list[str] = Field(default=["{}"], min_length=1)
    """Sentences with {} for a caption: a caption's vector is the mean over all of them."""
    embedder: str = "retrieve"
    """`retrieve` or `dedup`, for the one that the run has, or the name of another one."""

    @field_validator("templates")
    @classmethod
    def _hold_a_place(cls, templates: list[str]) -> list[str]:
        for each in templates:
            if each.count("{}") != 1:
                raise ValueError(f"the template {each!r} must hold {{}} once, for a caption")
        return templates

    @property
    def model(self) -> str:
        """The embedder that it asks."""
        return self.embedder

    def require(self, embedder: EmbedderSettings) -> None:
        """Raise ValueError for an embedder that has no text tower."""
        if embedder.kind != "open_clip":
            raise ValueError(
                f"of kind {embedder.kind} has no tower for text: name one of kind open_clip as "
                "prompts.embedder"
            )

    def load(self, place: str) -> PromptSettings:
        """Return itself: there is no file."""
        return self

    @property
    def about(self) -> list[object]:
        """What decides its scores, JSON-able."""
        return [self.wanted, self.against, self.templates]

    def compile(self, embedder: EmbedderSettings, threads: int) -> Head:
        """Return the captions as a head: an output for each, by the model's text tower."""
        from shared.embedders.open_clip_embedder import zero_shot_weights

        captions = [*self.wanted, *self.against]
        classes = [[each.replace("{}", text) for each in self.templates] for text in captions]
        weight = zero_shot_weights(embedder, classes, threads).astype(np.float64)
        return Head(weight, np.zeros(len(weight)), np.arange(len(self.wanted)))
