"""A frozen model: sees images through any network, the way its own config asks for."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from shared.embedders.evaluation_transform import EvaluationTransform
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.storage.files import dumps
from train.frozen.towers import Tokens, Tower, tower_of, trunk_of

VERSION = 1
"""Of the code that decides features; another one makes no use of what an earlier one has cached."""
LIBRARIES = ("numpy", "open_clip_torch", "pillow", "timm", "torch", "torchvision")
EXPLICIT_UP_TO = 512
"""Patches up to which explicit attention is the faster form on CPUs in bfloat16."""


@dataclass(frozen=True)
class Needs:
    """What a model was made for, from its own config."""

    size: int
    """Side of its square input in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop: float
    """The share of the shorter side, once resized, that the centre crop keeps."""
    pooling: str
    """How `Tokens.pooled` is made: `token` (CLS), `avg`, `map` (by attention), `pixels`, ..."""
    patch: int | None
    """Side of a patch in pixels."""
    registers: int

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:.4g}" for value in some) for some in (self.mean, self.std))
        words = [f"{self.size} px, {self.interpolation}, crop {self.crop:.4g}"]
        words += [f"mean {mean}, std {std}", f"pooled by {self.pooling}"]
        if self.patch:
            words.append(f"patches of {self.patch} px")
        if self.registers:
            words.append(f"{self.registers} register{'s' * (self.registers > 1)}")
        return "; ".join(words)


class FrozenModel:
    """A network that nothing changes any more, and the transform of images that it needs."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        transform: EvaluationTransform,
        needs: Needs,
        settings: EmbedderSettings,
        identity: Any,
        tower: Tower | None = None,
    ) -> None:
        """Take a `module` that is on the settings' device and in eval mode.

        `identity` is what decides its features besides its weights, JSON-able; `tower` how they
        are read, by default as those of its library are.
        """
        self.name, self.module, self.transform, self.needs = name, module, transform, needs
        self.device = torch.device(settings.device)
        self.precision = settings.precision
        self._identity = identity
        self.tower = tower or tower_of(module)
        """Maps normalised images [n, 3, h, w] and the number of blocks wanted to `Tokens`."""
        self._fused = True

    @property
    def vit(self) -> VisionTransformer | None:
        """Timm's Vision Transformer, inside a tower of open_clip too; None for all else."""
        network = trunk_of(self.module)
        return network if isinstance(network, VisionTransformer) else None

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of all that decides the features of an image, the weights included."""
        about = {
            "version": VERSION,
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "identity": self._identity,
            "transform": repr(self.transform),
            "precision": self.precision,
            "device": self.device.type,
        }
        digest = hashlib.sha256(dumps(about).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def prepare(self, image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        """Return an RGB image resized and cropped as the model needs it. Thread-safe."""
        return self.transform.prepare(image)

    def normalised(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Return the model's float32 input, on its device."""
        return self.transform.normalised(pixels.to(self.device))

    @torch.no_grad()
    def tokens(self, pixels: UInt8[Tensor, "n 3 h w"], blocks: int = 1) -> Tokens:
        """Return what the model sees in prepared images, float32, on its device.

        CLS tokens are those of the last `blocks` blocks, or of as many as there are. Images may be
        of any size that the patches divide, where the model is made for that. Raises LvdError where
        it is not, and where anything is not finite.
        """
        height, width = pixels.shape[2:]
        patch = self.needs.patch
        if patch and (height % patch or width % patch):
            raise LvdError(
                f"--model {self.name}: {height} x {width} px cannot be cut in patches of {patch} "
                "px: give a --size that is a multiple of it"
            )
        self._choose_attention(tokens=height * width // patch**2 if patch else 0)
        precision = getattr(torch, self.precision)
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            try:
                found = self.tower(self.normalised(pixels), blocks)
            except (AssertionError, RuntimeError) as error:
                if (height, width) == (self.needs.size, self.needs.size):
                    raise
                raise LvdError(
                    f"--model {self.name} takes {self.needs.size} x {self.needs.size} px and no "
                    f"{height} x {width}: leave --size away"
                ) from error
        found = Tokens(
            found.pooled.float(),
            None if found.cls is None else found.cls.float(),
            None if found.patches is None else found.patches.float(),
        )
        if not all(some.sum().isfinite() for some in found if some is not None):
            raise LvdError(
                f"--model {self.name} gives features that are not finite in {self.precision}: "
                "check its weights, or compute in float32"
            )
        return found

    def _choose_attention(self, tokens: int) -> None:
        """Tell timm's attention modules which form to take, for so many patches.

        Measured on one thread of an AVX512-BF16 processor in bfloat16, a whole forward pass takes
        1.06 to 1.08 times as long with the fused form at 65 and 197 tokens, and 0.88 at 1,025.
        """
        slow = self.device.type == "cpu" and self.precision == "bfloat16"
        fused = not slow or tokens > EXPLICIT_UP_TO
        if fused != self._fused:
            for module in self.module.modules():
                if hasattr(module, "fused_attn"):
                    setattr(module, "fused_attn", fused)  # noqa: B010 - final, for TorchScript
            self._fused = fused


class JoinedModel:
    """One or several frozen models whose features stand side by side."""

    def __init__(self, name: str, parts: Sequence[FrozenModel]) -> None:
        self.name, self.parts = name, tuple(parts)

    @property
    def fingerprint(self) -> str:
        """The sha256 of all that decides its features; that of its part, where it has one."""
        parts = [part.fingerprint for part in self.parts]
        return parts[0] if len(parts) == 1 else hashlib.sha256("+".join(parts).encode()).hexdigest()

    @property
    def notes(self) -> list[str]:
        """What each part needs, in a line."""
        return [f"{part.name}: {part.needs}" for part in self.parts]
