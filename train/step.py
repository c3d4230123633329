"""One optimiser step of DINOv2: teacher, centering, student, losses, update, in this order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor
from torch.profiler import record_function

from train.data.crops import GLOBAL_VIEWS, finish_views, normalise
from train.data.loader import Batch
from train.distributed.agreement import Agreement, agree
from train.distributed.parallelise import autocast, sync_gradients
from train.model.logits import Logits
from train.model.network import Outputs
from train.objectives.dino_loss import dino_loss
from train.objectives.groups import of_whole_groups
from train.objectives.ibot_loss import ibot_loss
from train.objectives.infonce import infonce_loss
from train.objectives.koleo import koleo_loss
from train.objectives.targets import Targets
from train.optimisation.ema import update_teacher
from train.optimisation.gradients import clip_by_module, drop_gradients_of_frozen, square_sums
from train.optimisation.groups import set_values, take_step
from train.optimisation.schedules import Values
from train.recipe import Recipe
from train.seeds import derive
from train.system import System

PARTS = ("teacher", "student", "losses", "backward", "update")
"""The names of a step's parts in a trace."""


@dataclass
class MicroBatch:
    """The tensors of one forward pass on the training device, crop-major.

    `global_views` float [2n, 3, G, G], `local_views` float [L n, 3, l, l] or None, `masks` bool
    [2n, p] or None; `index` int64 [m] are the places of the flattened [2n p] patches at which iBOT's
    loss is taken, the masked ones or (in a distillation) all, and `weights` float32 [m] what each
    of them counts.
    """

    global_views: Tensor
    local_views: Tensor | None
    masks: Tensor | None
    index: Tensor | None
    weights: Tensor | None


@dataclass
class Report:
    """What a step did. Its figures are read on the host, which waits for the device, when asked."""

    agreement: Agreement
    features: Tensor
    """The student's CLS tokens of the global views of the last micro-batch, [2n, d]."""
    targets: list[Targets]
    """What the teacher asked of each micro-batch's views, or of its masked patches where DINO's loss
    is off; empty where neither is on."""

    @property
    def losses(self) -> dict[str, float]:
        """Those that were optimised, means over all processes."""
        return self.agreement.losses

    @property
    def norms(self) -> dict[str, float]:
        """Gradient norms of the sub-modules before clipping."""
        return self.agreement.norms

    @property
    def skipped(self) -> bool:
        """Whether nothing was moved, because a loss or a gradient was not finite."""
        return self.agreement.skipped


def optimiser_step(
    system: System,
    micro_batches: Sequence[MicroBatch],
    values: Values,
    step: int,
    counts: Mapping[str, float] | None = None,
) -> Report:
    """Train on the micro-batches of one global batch and return what happened.

    The teacher sees the unmasked global views of all micro-batches first, so that their outputs are
    centred as one batch, over all processes; then each micro-batch of the student is measured
    against its share of the targets. Where a loss or a gradient is not finite on any process,
    nothing moves on any of them: no weight, no moment, no centre, no teacher. Nothing here waits
    for the device. `counts` are this process's figures of its own to sum over all of them: they
    travel with the losses and norms, in the one collective that is not of a network or a centering.
    """
    with record_function("teacher"):
        cls_targets, patch_targets = _targets(system, micro_batches, values.teacher_temperature)
    system.optimiser.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for number, views in enumerate(micro_batches):
        torch.manual_seed(derive(system.recipe.seed, "step", step, system.ranks.rank, number))
        last = number == len(micro_batches) - 1
        with sync_gradients(system.student_called, last):
            with record_function("student"):
                outputs = _student(system, views)
            with record_function("losses"):
                losses = _losses(
                    system.recipe, views, outputs, cls_targets[number], patch_targets[number]
                )
            with record_function("backward"):
                (losses["loss"] / len(micro_batches)).backward()
        for name, loss in losses.items():
            share = loss.detach().float() / len(micro_batches)
            sums[name] = sums[name] + share if name in sums else share
    with record_function("update"):
        agreement = _update(system, values, sums, counts or {})
    return Report(
        agreement,
        outputs.cls.detach(),
        [t for t in (cls_targets if system.dino_centering else patch_targets) if t is not None],
    )


def _update(
    system: System, values: Values, losses: Mapping[str, Tensor], counts: Mapping[str, float]
) -> Agreement:
    """Move student, teacher and centres by the gradients that are there, if all of it is finite."""
    if values.last_layer_frozen:
        drop_gradients_of_frozen(system.optimiser)
    squares = square_sums(system.student, system.ranks.world)
    agreement = agree(losses, squares, counts, system.ranks.world)
    skipped = agreement.skipped_there
    if system.recipe.optimiser.clip is not None:
        clip_by_module(system.student, agreement.norms_there, system.recipe.optimiser.clip)
    set_values(system.optimiser, values)
    take_step(system.optimiser, skipped)
    update_teacher(system.student, system.teacher, values.momentum, skipped)
    for centering in system.centerings:
        centering.update(skipped)
    return agreement


def to_device(batch: Batch, device: torch.device) -> MicroBatch:
    """Return a loader's batch as the tensors of a step, with finished views."""
    batch = batch.to(device)
    global_views, local_views = finish_views(
        batch.global_views, batch.local_views, batch.photometric
    )
    return MicroBatch(
        global_views=normalise(global_views),
        local_views=normalise(local_views) if len(local_views) else None,
        masks=batch.masks,
        index=batch.index,
        weights=batch.weights,
    )


@torch.no_grad()
def _targets(
    system: System, micro_batches: Sequence[MicroBatch], temperature: float
) -> tuple[list[Targets | None], list[Targets | None]]:
    """Return the teacher's targets for CLS and masked patches of each micro-batch.

    All micro-batches of all processes are centred together. None where there is no such objective.
    """
    none: list[Targets | None] = [None] * len(micro_batches)
    if not system.centerings:
        return none, none
    teacher = system.frozen_teacher or system.teacher_called
    cls_logits: list[Logits] = []
    patch_logits: list[Logits] = []
    for views in micro_batches:
        with autocast(system.precision, system.ranks.device):
            outputs: Outputs = teacher(views.global_views, masked_index=views.index)
        _keep(cls_logits, outputs.cls_logits)
        _keep(patch_logits, outputs.patch_logits)
    centering, of_patches = system.dino_centering, system.ibot_centering
    return (
        [*centering.targets(cls_logits, temperature)] if centering else none,
        [*of_patches.targets(patch_logits, temperature)] if of_patches else none,
    )


def _keep(others: list[Logits], logits: Logits | None) -> None:
    """Append logits, if there are any, with the prototypes of the `others`: so there is one copy."""
    if logits is not None:
        others.append(logits._replace(prototypes=others[0].prototypes) if others else logits)


def _student(system: System, views: MicroBatch) -> Outputs:
    with autocast(system.precision, system.ranks.device):
        outputs: Outputs = system.student_called(
            views.global_views, views.local_views, views.masks, views.index
        )
        return outputs


def _losses(
    recipe: Recipe,
    views: MicroBatch,
    outputs: Outputs,
    cls_targets: Targets | None,
    patch_targets: Targets | None,
) -> dict[str, Tensor]:
    """Return each objective as it enters the sum, before its weight, and the weighted sum `loss`."""
    objectives = recipe.objectives
    temperature = objectives.student_temperature
    losses: dict[str, Tensor] = {}
    if cls_targets is not None:
        assert outputs.cls_logits is not None  # student and teacher have the same heads
        losses["dino"] = dino_loss(
            outputs.cls_logits, cls_targets, global_views=GLOBAL_VIEWS, temperature=temperature
        )
    if patch_targets is not None:
        assert outputs.patch_logits is not None  # as above
        assert views.weights is not None  # as `index`, which the teacher was asked by
        losses["ibot"] = ibot_loss(
            outputs.patch_logits,
            patch_targets,
            views.weights,
            crops=len(views.global_views),
            temperature=temperature,
        )
    features = outputs.cls.unflatten(0, (GLOBAL_VIEWS, -1))
    group = recipe.group_size
    if objectives.infonce > 0:
        infonce = partial(
            infonce_loss, group_size=group, temperature=objectives.infonce_temperature
        )
        assert outputs.projections is not None  # InfoNCE has its projector, or the CLS token
        projections = outputs.projections.unflatten(0, (-1, features.shape[1]))
        losses["infonce"] = of_whole_groups(infonce, projections, group)
    if objectives.koleo > 0:
        koleo = partial(koleo_loss, group_size=group, estimator=objectives.koleo_estimator)
        losses["koleo"] = of_whole_groups(
            lambda views: reduce(torch.add, map(koleo, views)), features, group
        )
    weighted = [getattr(objectives, name) * loss for name, loss in losses.items()]
    losses["loss"] = reduce(torch.add, weighted)
    return losses
