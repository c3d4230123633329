"""The frozen teacher of a distillation: from the student's views to the logits that it learns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from shared.errors import LvdError
from train.data.crops import IMAGENET_MEAN, IMAGENET_STD
from train.distillation.anchors import AnchorHead, sample_anchors
from train.distillation.settings import DistillationSettings
from train.distributed.ranks import Ranks
from train.model.heads import ProjectionHead
from train.model.network import Network, Outputs
from train.model.settings import HeadsSettings
from train.persistence.marks import is_of_a_run
from train.weights.trained import find_trained

Tokens = tuple[Float[Tensor, "n d"], Float[Tensor, "n rows columns d"]]


class FrozenTeacher(nn.Module):
    """A network of any width, depth and patch size, which sets targets on the student's grid.

    It is called as a `Network` is. It has no gradients and nothing of it is optimised, sharded or
    saved, but for anchors: every process holds the whole of it, its matrices in the precision of
    matrix products (`train.distributed.parallelise.prepare_frozen`).
    """

    def __init__(
        self,
        encoder: nn.Module,
        encode: Callable[[Float[Tensor, "n 3 h w"]], Tokens],
        dino_head: nn.Module,
        ibot_head: nn.Module | None,
        *,
        patch: int,
        grid: tuple[int, int],
    ) -> None:
        """`encode` calls `encoder`, whose patches are `patch` px wide; `grid` is the student's."""
        super().__init__()
        self.encoder = encoder
        self.dino_head, self.ibot_head = dino_head, ibot_head
        self._encode, self._patch, self._grid = encode, patch, grid
        self.requires_grad_(False).eval()

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of its backbone's weights."""
        return _digest(self.encoder)

    @property
    def has_anchors(self) -> bool:
        """Whether its heads are anchors, which have to be sampled first."""
        return isinstance(self.dino_head, AnchorHead)

    def take_anchors(
        self, views: Iterable[Float[Tensor, "n 3 g g"]], seed: int, ranks: Ranks
    ) -> None:
        """Make anchors of the tokens of `views`, of as many as it takes; `views` must not end."""
        heads = [h for h in (self.dino_head, self.ibot_head) if isinstance(h, AnchorHead)]
        of_cls, of_patches, *_ = [*(len(head.anchors) for head in heads), 0]
        sampled = sample_anchors(self.tokens, views, (of_cls, of_patches), seed, ranks)
        for head, tokens in zip(heads, sampled, strict=False):
            head.anchor_at(tokens)

    @torch.no_grad()
    def forward(
        self,
        global_views: Float[Tensor, "globals 3 g g"],
        masked_index: Int[Tensor, " m"] | None = None,
    ) -> Outputs:
        """Return CLS tokens and logits, those of the patches at `masked_index` of the grid."""
        cls, patches = self.tokens(global_views)
        logits = None
        if masked_index is not None:
            head = self.dino_head if self.ibot_head is None else self.ibot_head
            logits = head(patches.flatten(0, 1)[masked_index])
        return Outputs(cls, self.dino_head(cls), logits)

    def tokens(
        self, views: Float[Tensor, "n 3 g g"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n p d"]]:
        """Return CLS tokens, and patch tokens resampled (bilinear, antialiased) to the grid.

        Views whose side is no multiple of its patches are resized to the nearest that is one.
        """
        sides = [max(1, round(side / self._patch)) * self._patch for side in views.shape[-2:]]
        cls, patches = self._encode(_resampled(views, sides))
        patches = _resampled(patches.movedim(-1, 1), self._grid)
        return cls, patches.flatten(2).transpose(1, 2)


def build_frozen_teacher(
    settings: DistillationSettings,
    heads: HeadsSettings,
    *,
    grid: tuple[int, int],
    patches: bool,
    device: torch.device,
) -> FrozenTeacher:
    """Return the teacher that `settings` names, for a student with `heads` and patches of `grid`.

    `patches` says whether there is an iBOT objective. Raises LvdError where it cannot be had, or
    its prototypes are not as many as the student's.
    """
    source = Path(settings.teacher)
    if is_of_a_run(source):
        network = find_trained(source).network("teacher")
        dino_head = _checked(network, heads, settings.teacher, patches)
        teacher = _of_ours(network, dino_head, grid)
    else:
        teacher = _of_others(settings.teacher, heads, grid, patches, device)
    return teacher.to(device)


def _of_ours(network: Network, dino_head: ProjectionHead, grid: tuple[int, int]) -> FrozenTeacher:
    backbone = network.backbone

    def encode(views: Tensor) -> Tokens:
        cls, patches = backbone(views)
        return cls, patches.unflatten(1, backbone.grid(*views.shape[-2:]))

    return FrozenTeacher(
        backbone, encode, dino_head, network.ibot_head, patch=backbone.patch, grid=grid
    )


def _of_others(
    name: str, heads: HeadsSettings, grid: tuple[int, int], patches: bool, device: torch.device
) -> FrozenTeacher:
    from train.frozen.loading import load_models  # open_clip, which no other training needs

    try:
        (model,) = load_models([name], precision="float32", device=device.type)
    except LvdError as error:
        raise LvdError(str(error).replace("--model ", "distillation.teacher ", 1)) from error
    no_tokens = LvdError(
        f"distillation.teacher {name} has no CLS and patch tokens of one network, which are "
        "what a student learns: name a Vision Transformer with a CLS token"
    )
    part = model.parts[0]
    patch, size = part.needs.patch, part.needs.size
    if len(model.parts) > 1 or patch is None:
        raise no_tokens

    def tokens_of(views: Tensor) -> Tokens:
        seen = part.tower(views, 1)
        if seen.cls is None or seen.patches is None:
            raise no_tokens
        return seen.cls[:, -1], seen.patches

    dim = tokens_of(torch.zeros(1, 3, size, size, device=device))[0].shape[-1]
    # Views come as numbers of ImageNet's mean and deviation; the teacher may want another one's.
    scale, shift = (
        torch.tensor(values, device=device).view(3, 1, 1)
        for values in _change_of_norm(part.needs.mean, part.needs.std)
    )

    def encode(views: Tensor) -> Tokens:
        return tokens_of(views * scale + shift)

    ibot_head = None
    if patches and not heads.shared:
        ibot_head = AnchorHead(dim, (heads.ibot or heads.dino).prototypes)
    dino_head = AnchorHead(dim, heads.dino.prototypes)
    return FrozenTeacher(part.module, encode, dino_head, ibot_head, patch=patch, grid=grid)


def _change_of_norm(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[list[float], list[float]]:
    """Return scale and shift that lead from ImageNet's mean and deviation to others."""
    scale = [ours / theirs for ours, theirs in zip(IMAGENET_STD, std, strict=True)]
    shift = [
        (ours - theirs) / by for ours, theirs, by in zip(IMAGENET_MEAN, mean, std, strict=True)
    ]
    return scale, shift


def _resampled(maps: Float[Tensor, "n c h w"], size: list[int] | tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return interpolate(maps.float(), size=tuple(size), mode="bilinear", antialias=True)


def _checked(network: Network, heads: HeadsSettings, teacher: str, patches: bool) -> ProjectionHead:
    """Return the teacher's head for CLS tokens.

    Raises LvdError unless student and teacher have as many prototypes in each head they use.
    """
    if network.dino_head is None:
        raise LvdError(
            f"distillation.teacher {teacher} was trained without heads: name its model folder, "
            f"{teacher}/model, whose tokens are compared with anchors"
        )
    pairs = {"dino": (network.dino_head, heads.dino)}
    if patches:
        theirs = network.dino_head if network.ibot_head is None else network.ibot_head
        pairs["ibot"] = (theirs, heads.dino if heads.shared else heads.ibot or heads.dino)
    for name, (theirs, ours) in pairs.items():
        if len(theirs.prototypes) != ours.prototypes:
            raise LvdError(
                f"distillation.teacher {teacher} has {len(theirs.prototypes):,} prototypes where "
                f"the student's {name} head has {ours.prototypes:,}: say "
                f"--set heads.{name}.prototypes={len(theirs.prototypes)}"
            )
    return network.dino_head


def _digest(module: nn.Module) -> str:
    """Return the sha256 of a module's tensors, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
