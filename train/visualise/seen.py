"""What a model sees in some pictures: computed once, drawn in several figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image

from train.frozen.attention_maps import MissingTokensError, cls_attention, most_attended
from train.frozen.model import FrozenModel
from train.visualise.overlays import model_pixels

EVEN = 0.8
"""Attention whose mask takes this share of the patches that even attention's would take is even."""


@dataclass(frozen=True)
class Seen:
    """A model's attention and patch tokens of some pictures; None for what it has not."""

    model: FrozenModel
    attention: Float[np.ndarray, "n heads rows cols"] | None
    patches: Float[np.ndarray, "n rows cols d"] | None
    missing: tuple[str, ...] = ()
    """Why something is None."""

    def first(self, count: int) -> Seen:
        """Return what it sees in the first so many pictures."""
        attention, patches = (
            None if some is None else some[:count] for some in (self.attention, self.patches)
        )
        return replace(self, attention=attention, patches=patches)

    def most_attended(self, mass: float) -> Bool[np.ndarray, "n heads rows cols"]:
        """Return the fewest patches of each map of attention that hold `mass` of it."""
        return most_attended(torch.from_numpy(self.attention), mass).numpy()


def see(model: FrozenModel, pictures: Mapping[str, Image.Image]) -> Seen:
    """Return what `model` sees in squares of one or more pictures."""
    attention, patches, missing = [], [], []
    for image in pictures.values():
        pixels = model_pixels(model, [image])
        try:
            attention.append(cls_attention(model, pixels).cpu().numpy())
        except MissingTokensError as error:
            missing = [str(error)]
        if (tokens := model.tokens(pixels).patches) is not None:
            patches.append(tokens.cpu().numpy())
    if not patches:
        missing.append(f"model {model.name} has no patch tokens, and no map of features")
    return Seen(
        model,
        np.concatenate(attention) if attention else None,
        np.concatenate(patches) if patches else None,
        tuple(missing),
    )


def is_even(kept: Bool[np.ndarray, "rows cols"], mass: float) -> bool:
    """Tell whether the mask of a map that holds `mass` of it says next to nothing.

    Even attention holds it in as large a share of the patches, wherever it looks.
    """
    return bool(kept.mean() > EVEN * mass)
