"""Builds what a run trains: student, teacher, centering and optimiser, on this process's device."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from train.distillation.frozen_teacher import FrozenTeacher, build_frozen_teacher
from train.distributed.materialise import copy_shares, fill
from train.distributed.parallelise import parallelise, prepare_frozen, resolve_precision
from train.distributed.ranks import Ranks
from train.model.deferred import DeferredInit
from train.model.network import Network, make_teacher
from train.objectives.centering import Centering, build_centering
from train.optimisation.groups import make_optimiser, parameter_groups
from train.recipe import Recipe
from train.student import new_network
from train.weights.continuation import load_networks, network_weights
from train.weights.init import backbone_weights, load_backbone


@dataclass
class System:
    """Everything of a run that changes while it trains, and how to call it."""

    recipe: Recipe
    ranks: Ranks
    precision: torch.dtype
    student: Network
    teacher: Network
    student_called: nn.Module
    """The student as parallelism wants it called."""
    teacher_called: nn.Module
    frozen_teacher: FrozenTeacher | None
    """Of a distillation: it sets the targets, and `teacher` is only the student's average."""
    dino_centering: Centering | None
    ibot_centering: Centering | None
    optimiser: torch.optim.AdamW

    @property
    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of patches of a global view."""
        size = self.recipe.crops.global_size
        return self.student.backbone.grid(size, size)

    @property
    def patches(self) -> int:
        """Return the patches of a global view at which iBOT's loss is taken where nothing is masked."""
        return prod(self.grid) if self.ibot_centering and not self.recipe.masks else 0

    @property
    def centerings(self) -> list[Centering]:
        """Return the centerings there are."""
        return [c for c in (self.dino_centering, self.ibot_centering) if c is not None]


def frozen_teacher(
    recipe: Recipe, grid: tuple[int, int], device: torch.device
) -> FrozenTeacher | None:
    """Return the teacher of a distillation into patches of `grid`; None where there is no such."""
    if recipe.distillation is None:
        return None
    assert recipe.heads is not None  # or the recipe would have been refused
    return build_frozen_teacher(
        recipe.distillation,
        recipe.heads,
        grid=grid,
        patches=recipe.objectives.ibot > 0,
        device=device,
    )


def _build_whole(
    recipe: Recipe, ranks: Ranks, source: str | None, *, fresh: bool
) -> tuple[Network, Network, nn.Module, nn.Module]:
    """Return student and teacher, whole on this process's device, and what to call for them."""
    student = new_network(recipe)
    if source is not None:
        load_backbone(student, source)
    teacher = make_teacher(student)
    if recipe.continue_from is not None and fresh:
        load_networks(Path(recipe.continue_from), {"student": student, "teacher": teacher})
    student, teacher = student.to(ranks.device), teacher.to(ranks.device)
    return student, teacher, *parallelise(student, teacher, recipe.parallel, ranks)


def _build_shares(
    recipe: Recipe, ranks: Ranks, source: str | None, *, fresh: bool
) -> tuple[Network, Network, nn.Module, nn.Module]:
    """Return as `_build_whole`, with the same values, but of each block this process's share alone.

    Whole at some time are one tensor, the fresh heads, and what `continue_from` reads of a network.
    """
    deferred = DeferredInit()
    student = new_network(recipe, deferred=deferred)
    values = deferred.values(student) if fresh else {}
    teacher = make_teacher(student.to("meta"))
    if source is not None:
        weights = backbone_weights(student.backbone, source)
        values |= {f"backbone.vit.{name}": weight.detach for name, weight in weights.items()}
    called = parallelise(student, teacher, recipe.parallel, ranks)
    for network in (student, teacher):
        network.to_empty(device=ranks.device)
    fill(student, values)
    copy_shares(student, teacher)
    if recipe.continue_from is not None and fresh:
        for name, network in {"student": student, "teacher": teacher}.items():
            weights = network_weights(Path(recipe.continue_from), name, network)
            fill(network, {key: weight.detach for key, weight in weights.items()})
    return student, teacher, *called


def build_system(
    recipe: Recipe, ranks: Ranks, start_from: str | None = None, *, fresh: bool = True
) -> System:
    """Return the system before its first step; `start_from` is what `--init` names.

    Unless it is to be `fresh`, because a checkpoint will be loaded into it, nothing else is loaded.
    """
    source = start_from or (f"timm:{recipe.model.name}" if recipe.model.pretrained else None)
    build = _build_shares if recipe.parallel.sharded and ranks.world > 1 else _build_whole
    student, teacher, student_called, teacher_called = build(
        recipe, ranks, source if fresh else None, fresh=fresh
    )
    size = recipe.crops.global_size
    frozen = frozen_teacher(recipe, student.backbone.grid(size, size), ranks.device)
    precision = resolve_precision(recipe.parallel, ranks.device)
    if frozen is not None:
        _ = frozen.fingerprint  # of the weights as they were given
        prepare_frozen(frozen, frozen.encoder, recipe.parallel, precision)

    def centering(head: Literal["dino", "ibot"]) -> Centering | None:
        if recipe.heads is None or getattr(recipe.objectives, head) == 0:
            return None
        prototypes = (getattr(recipe.heads, head) or recipe.heads.dino).prototypes
        return build_centering(recipe.objectives.centering, prototypes).to(ranks.device)

    return System(
        recipe=recipe,
        ranks=ranks,
        precision=precision,
        student=student,
        teacher=teacher,
        student_called=student_called,
        teacher_called=teacher_called,
        frozen_teacher=frozen,
        dino_centering=centering("dino"),
        ibot_centering=centering("ibot"),
        optimiser=make_optimiser(parameter_groups(student, recipe.optimiser), recipe.optimiser),
    )
