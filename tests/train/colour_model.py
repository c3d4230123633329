"""A stand-in for a frozen model whose patch tokens are the mean colours of the patches."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.functional import avg_pool2d


@dataclass
class ColourModel:
    """Patch tokens and pooled features are mean colours; `seen` counts the images it looked at."""

    size: int = 32
    patch: int = 4
    scale: float = 1.0
    seen: int = 0
    shapes: set = field(default_factory=set)

    def __post_init__(self):
        self.name = f"colour{self.patch}"
        self.fingerprint = f"{self.size}-{self.patch}-{self.scale}"
        self.transform = SimpleNamespace(reduce_to=2 * self.size, input_side=self.size)
        self.device = torch.device("cpu")
        self.needs = SimpleNamespace(size=self.size, patch=self.patch, interpolation="bicubic")

    def prepare(self, image):
        return np.array(image.resize((self.size, self.size)))

    def tokens(self, pixels):
        self.seen += len(pixels)
        self.shapes.add(tuple(pixels.shape[1:]))
        values = pixels.float() / 255 * self.scale
        patches = avg_pool2d(values, self.patch).permute(0, 2, 3, 1)
        return SimpleNamespace(patches=patches, pooled=values.mean(dim=(2, 3)), cls=None)


def joined(*parts):
    return SimpleNamespace(name="+".join(part.name for part in parts), parts=parts)
