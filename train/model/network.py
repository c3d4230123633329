"""Student and teacher: a backbone and its heads, from views to prototype logits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from train.model.backbone import Backbone, build_backbone
from train.model.blocks import SparseBlock
from train.model.deferred import DeferredInit
from train.model.heads import ProjectionHead, Projector
from train.model.logits import Logits
from train.model.settings import HeadsSettings, ModelSettings, ProjectorSettings
from train.model.uninitialised import Uninitialised


class Outputs(NamedTuple):
    """What the objectives read. A tuple, so that FSDP and DDP find the tensors in it."""

    cls: Float[Tensor, "globals d"]
    """CLS tokens of the global views, after the final norm and before the head."""
    cls_logits: Logits | None
    """Of the global views, then of the local ones; None without heads."""
    patch_logits: Logits | None
    """Of the patch tokens at `masked_index`, where that is given."""
    projections: Float[Tensor, "views w"] | None = None
    """What InfoNCE compares, of the global views and then of the local ones."""

    def whole(self) -> list[Tensor]:
        """Return what there is of logits and projections, the logits as one matrix each."""
        logits = [some.whole() for some in (self.cls_logits, self.patch_logits) if some is not None]
        return logits if self.projections is None else [*logits, self.projections]


class Network(nn.Module):
    """A backbone, a DINO head, an iBOT head and a projector; the same class for both roles.

    `ibot_head` is None where one head serves both kinds of tokens, and without the iBOT objective;
    both are None where no objective goes through heads. `projector` is None without InfoNCE.
    """

    def __init__(
        self,
        backbone: Backbone,
        dino_head: ProjectionHead | None,
        ibot_head: ProjectionHead | None,
        projector: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head
        self.projector = projector

    def forward(
        self,
        global_views: Float[Tensor, "globals 3 g g"],
        local_views: Float[Tensor, "locals 3 l l"] | None = None,
        masks: Bool[Tensor, "globals p"] | None = None,
        masked_index: Int[Tensor, " m"] | None = None,
    ) -> Outputs:
        """Return CLS tokens and logits of crop-major views.

        The student sees `masks` on its global views only; the teacher is given none.
        `masked_index` lists the positions in the flattened [globals * p] whose patch tokens go
        through the iBOT head, of student and teacher alike.
        """
        nothing = torch.empty(0, dtype=torch.int64, device=global_views.device)
        index = nothing if masked_index is None else masked_index
        sizes = [global_views]
        if local_views is not None and len(local_views):
            sizes.append(local_views)
        views, patches = self.backbone(*sizes, masks=masks, patch_index=index)
        cls = views[: len(global_views)]
        projections = None if self.projector is None else self.projector(views)
        if self.dino_head is None:
            return Outputs(cls, None, None, projections)
        if masked_index is None:
            return Outputs(cls, self.dino_head(views), None, projections)
        if self.ibot_head is not None:
            return Outputs(cls, self.dino_head(views), self.ibot_head(patches), projections)
        logits: Logits = self.dino_head(torch.cat([views, patches]))
        of_views, of_patches = logits.split([len(views), len(patches)])
        return Outputs(cls, of_views, of_patches, projections)


def build_network(
    model: ModelSettings,
    heads: HeadsSettings | None,
    projector: ProjectorSettings | None = None,
    *,
    masked: bool,
    ibot: bool | None = None,
    infonce: bool = False,
    sizes: Sequence[int],
    seed: int,
    device: torch.device | str = "cpu",
    deferred: DeferredInit | None = None,
) -> Network:
    """Return a network whose random initialisation depends on `seed` alone.

    `sizes` are the sides in pixels of the views, that of the global ones first. `masked` says
    whether patches are masked, which takes a mask token; `ibot` whether there is an iBOT objective,
    which takes a head (by default where patches are masked); `infonce` whether there is InfoNCE,
    which takes the CLS tokens as they are where there is no `projector`. On the device `meta`
    nothing is allocated. With `deferred`, which then knows the values, the backbone has none yet,
    and the heads are on the CPU. Raises LvdError when the settings do not fit together.
    """
    on_meta = torch.device(device).type == "meta"
    with torch.random.fork_rng(devices=[]), torch.device("meta" if on_meta else "cpu"):
        torch.manual_seed(seed)
        with deferred or (Uninitialised() if on_meta else nullcontext()):
            backbone = build_backbone(model, image_size=sizes[0], masked=masked)
        for size in sizes:
            backbone.grid(size, size)
        dino_head = None if heads is None else ProjectionHead(backbone.dim, heads.dino)
        ibot_head = None
        if heads and not heads.shared and (masked if ibot is None else ibot):
            ibot_head = ProjectionHead(backbone.dim, heads.ibot or heads.dino)
        compared: nn.Module | None = nn.Identity() if infonce else None
        if projector is not None:
            compared = Projector(backbone.dim, projector)
    network = Network(backbone, dino_head, ibot_head, compared)
    return network if deferred else network.to(device)


def make_teacher(student: Network) -> Network:
    """Return a copy for the role of the teacher: no gradients, no stochastic depth, eval mode."""
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    for module in teacher.modules():
        if isinstance(module, SparseBlock):
            module.drop_path = 0.0
    return teacher
