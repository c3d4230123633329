"""Recipes: named training configurations in pipelines.yaml, and what must hold between settings."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.config import validate
from shared.errors import LvdError
from train.data.settings import CropSettings, DataSettings, MaskSettings
from train.distillation.settings import DistillationSettings
from train.distributed.settings import ParallelSettings
from train.model.settings import HeadsSettings, ModelSettings, ProjectorSettings
from train.monitoring.settings import CollapseSettings, KnnSettings, LogSettings, LookSettings
from train.objectives.settings import ObjectivesSettings
from train.optimisation.schedules import Schedules
from train.optimisation.settings import OptimiserSettings, TeacherSettings
from train.persistence.settings import CheckpointSettings
from train.recipe_tree import recipe_tree

FREE_ON_RESUME = (
    *("note", "accumulate", "parallel.", "checkpoints.", "log.", "knn.", "collapse.", "looks."),
    *("data.workers", "data.index", "data.prefetch", "data.resident"),
)
"""What may change between a run and its resumption: it decides no sample and no loss."""

PLACES = (".shards", ".select")
"""Ends of the settings that say where images are, which may have moved: what they are is compared."""

LENGTH = ("epochs", "epoch_steps", "steps")


class Recipe(BaseModel):
    """A named training configuration."""

    model_config = ConfigDict(extra="forbid")

    note: str = ""
    """What the recipe is for, and what it changes of the published one and why."""
    seed: int = 0
    batch_size: int = Field(ge=2)
    """Images of one optimiser step, over all processes and micro-batches."""
    group_size: int = Field(ge=2)
    """Images among which KoLeo seeks neighbours and InfoNCE negatives, and mask ratios are stratified. Consecutive images
    of the global batch form a group, which may lie on several processes, so that neither depends
    on their number."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches of a process in one step. The teacher's outputs of all of them are centred
    together, and a group lies inside one micro-batch of all processes: the losses are those of the
    whole batch."""
    epochs: float = Field(100, gt=0)
    """Length of the run, and the unit of all that is given in epochs."""
    epoch_steps: int | None = Field(None, ge=1)
    """Steps that count as an epoch (1250 in DINOv2); by default one pass over the data."""
    steps: int | None = Field(None, ge=1)
    """Length of the run in steps, in place of `epochs` times the steps of an epoch; whatever is
    given in epochs (warm-up, freezing) shrinks or grows with it."""
    continue_from: str | None = None
    """The OUT of another run (its newest checkpoint is taken), a checkpoint, or an export of the
    format `heads` or `single`: student, teacher and heads go on from there, with new schedules and
    moments and at any size of crops and of patches."""
    data: DataSettings = Field(default_factory=DataSettings)
    crops: CropSettings = Field(default_factory=CropSettings)
    masks: MaskSettings | None = None
    model: ModelSettings
    heads: HeadsSettings | None = None
    """What DINO and iBOT are taken through; InfoNCE alone has none."""
    projector: ProjectorSettings | None = None
    """What InfoNCE is taken through, as in SimCLR; by default the CLS token itself, as in SSCD."""
    objectives: ObjectivesSettings = Field(default_factory=ObjectivesSettings)
    optimiser: OptimiserSettings
    teacher: TeacherSettings = Field(default_factory=TeacherSettings)
    distillation: DistillationSettings | None = None
    parallel: ParallelSettings = Field(default_factory=ParallelSettings)
    checkpoints: CheckpointSettings = Field(default_factory=CheckpointSettings)
    log: LogSettings = Field(default_factory=LogSettings)
    knn: KnnSettings = Field(default_factory=KnnSettings)
    collapse: CollapseSettings = Field(default_factory=CollapseSettings)
    looks: LookSettings = Field(default_factory=LookSettings)

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        if self.batch_size % self.group_size:
            raise ValueError(
                f"group_size {self.group_size} does not divide batch_size {self.batch_size}: "
                "choose a divisor of it"
            )
        self._patches_fit()
        self._heads_fit()
        wants_patches = self.objectives.ibot > 0
        if self.distillation is not None:
            if self.masks is not None or self.model.drop_path:
                raise ValueError(
                    "a distillation masks nothing and has no stochastic depth (arXiv 2304.07193, "
                    "section 5): set masks=null and model.drop_path=0"
                )
        elif wants_patches and self.masks is None:
            raise ValueError("the iBOT objective needs masks: add 'masks: {}', or set ibot to 0")
        if self.data.resident and self.crops.edits is not None:
            raise ValueError("crops.edits are made by workers: set data.resident=false")
        return self

    def _heads_fit(self) -> None:
        """Raise ValueError where heads, masks or local views belong to no objective, or lack."""
        heads, wants_patches = self.heads, self.objectives.ibot > 0
        if heads is None and self.objectives.taught:
            raise ValueError("the DINO and iBOT objectives need heads: add heads")
        if heads is not None and not self.objectives.taught:
            raise ValueError("heads belong to the DINO and iBOT objectives, whose weights are 0")
        if self.projector is not None and not self.objectives.infonce:
            raise ValueError("a projector belongs to InfoNCE, whose weight is 0: raise it")
        if heads is None and self.distillation is not None:
            raise ValueError("a distillation teaches through heads: raise objectives.dino or ibot")
        if wants_patches and heads is not None and heads.ibot is None and not heads.shared:
            raise ValueError("the iBOT objective needs a head: add heads.ibot, or heads.shared")
        if not wants_patches and (self.masks is not None or (heads and heads.ibot is not None)):
            raise ValueError("masks and heads.ibot belong to the iBOT objective, whose weight is 0")

    def _patches_fit(self) -> None:
        """Raise ValueError for a size that `model.patch_size` does not divide, where it is set."""
        patch, crops = self.model.patch_size, self.crops
        sizes = {
            "model.image_size": self.model.image_size,
            "crops.global_size": crops.global_size,
            "crops.local_size": crops.local_size if crops.local_views else None,
        }
        for key, size in sizes.items():
            if patch is not None and size is not None and size % patch:
                raise ValueError(
                    f"{key} {size} is not a multiple of model.patch_size {patch}: change one of them"
                )

    def check(self, processes: int) -> None:
        """Raise LvdError where no run of so many processes can keep the recipe, whatever its data."""
        self.micro_batch(processes)
        if self.steps is not None or self.epoch_steps is not None:
            self.schedules(data_epoch=1)  # not read: the recipe itself says how long the run is

    def check_sources(self, shards: str | None, select: str | None) -> None:
        """Raise LvdError unless either the options of a run or the recipe say where the images are."""
        named = shards is not None or select is not None
        if self.data.mix and named:
            raise LvdError(
                "data.mix of the recipe names the images: leave out --shards and --select, or say "
                "--set data.mix={}"
            )
        if not self.data.mix and not named:
            raise LvdError(
                "nothing says which images to train on: give --shards, or --select with a list"
            )

    def micro_batch(self, processes: int) -> int:
        """Return the images of one forward pass; LvdError where they do not come out even.

        A group may lie on several processes, but has to be in one micro-batch of all of them.
        """
        together, rest = divmod(self.batch_size, self.accumulate)
        if rest or together % self.group_size:
            largest = self.batch_size // self.group_size
            works = [n for n in range(1, largest + 1) if largest % n == 0]
            raise LvdError(
                f"batch_size {self.batch_size} cannot be cut into {self.accumulate} micro-batches "
                f"of whole groups of {self.group_size}: accumulate may be {_nearest(works, self.accumulate)}"
            )
        if together % processes:
            works = [n for n in range(1, together + 1) if together % n == 0]
            step = lcm(processes * self.accumulate, self.group_size * self.accumulate)
            sizes = {max(1, self.batch_size // step) * step, -(-self.batch_size // step) * step}
            raise LvdError(
                f"batch_size {self.batch_size} cannot be cut into {processes} processes x "
                f"{self.accumulate} micro-batches: start {_nearest(works, processes)} processes, or "
                f"set batch_size to {_either(sorted(sizes))}"
            )
        return together // processes

    def length(self, data_epoch: int) -> tuple[int, float]:
        """Return (steps of the run, steps of an epoch), given the steps of a pass over the data."""
        if self.steps is not None:
            return self.steps, self.steps / self.epochs
        epoch = self.epoch_steps or data_epoch
        return max(1, round(self.epochs * epoch)), epoch

    def schedules(self, data_epoch: int) -> Schedules:
        """Return the schedules of the run, given the steps of a pass over the data.

        Raises LvdError where the run is too short for them.
        """
        steps, epoch_steps = self.length(data_epoch)
        return Schedules(
            self.optimiser,
            self.teacher,
            batch_size=self.batch_size,
            total_steps=steps,
            steps_per_epoch=epoch_steps,
        )


def _nearest(numbers: Sequence[int], wanted: int) -> str:
    """Return the numbers next to one that is not among them, for a message."""
    below = [n for n in numbers if n < wanted]
    return _either([*below[-1:], *[n for n in numbers if n > wanted][:1]])


def _either(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))


def read_recipe(config: Path, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe `name` of the file `config` with `key.sub=value` overrides applied.

    Raises LvdError, in one line, for an unknown name or a wrong setting.
    """
    tree = recipe_tree(config, name, overrides)
    return validate(Recipe, tree, file=config, at=f"recipes.{name}", overrides=overrides)
