"""Loads micro-batches of views: which samples, read, decoded and cropped, by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from shared.errors import LvdError
from shared.pictures.images import ImageError
from shared.send import send
from train.data.crops import GLOBAL_VIEWS, Draws, SampleViews, Views, stack_views
from train.data.index import SampleIndex
from train.data.mixture import Mixture
from train.data.order import Order
from train.data.pictures import picture
from train.data.resident import ResidentImages
from train.data.settings import DataSettings
from train.data.workers import made_by_workers
from train.objectives.ibot_loss import mask_weights

_FOR_DEVICE = ("global_views", "local_views", "masks", "index", "weights")


@dataclass
class Batch:
    """A micro-batch of n images; views are crop-major (view 0 of all images, then view 1, ...)."""

    step: int
    micro: int
    epoch: int
    keys: list[str]
    """[n] the images that the views show."""
    global_views: UInt8[Tensor, "2n 3 g g"]
    local_views: UInt8[Tensor, "m 3 l l"]
    masks: Bool[Tensor, "2n patches"] | None
    photometric: dict[str, Tensor] | None
    """What `train.data.crops.finish_views` has yet to do to the views, where the GPU is to do it."""
    broken: list[tuple[str, str]]
    """Key and reason of each image that could not be read or decoded."""
    index: Int[Tensor, " m"] | None = None
    """The places of the flattened [2n patches] at which iBOT's loss is taken: the masked ones or,
    where a distillation masks nothing, all."""
    weights: Float[Tensor, " m"] | None = None
    """What each of them counts, by `train.objectives.ibot_loss.mask_weights`."""

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in page-locked memory, but for those of a device.

        `photometric` stays as it is: the host reads it to choose what is to be done.
        """
        return self._with(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device, without waiting for the copy; `photometric` stays."""
        return self._with(lambda tensor: send(tensor, device))

    def tensors(self) -> dict[str, Tensor]:
        """Return what a device is to have of it, by the name of the field."""
        named = ((name, getattr(self, name)) for name in _FOR_DEVICE)
        return {name: tensor for name, tensor in named if tensor is not None}

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed = copy(self)
        for name, tensor in self.tensors().items():
            setattr(changed, name, change(tensor))
        return changed


class Masks(Protocol):
    """Draws the masks of a micro-batch."""

    def __call__(
        self, *, step: int, epochs: Sequence[int], first: int, samples: Sequence[int]
    ) -> Bool[Tensor, "2n patches"]:
        """Return the masks of `samples`, which stand at `first` in the global batch of `step`."""


def make_loader(
    index: SampleIndex,
    order: Order | Mixture,
    views: Views,
    masks: Masks | None = None,
    *,
    settings: DataSettings,
    ranks: tuple[int, int],
    accumulate: int,
    start_step: int,
    stop_step: int,
    patches: int = 0,
    pin_memory: bool = False,
    resident: ResidentImages | None = None,
) -> Iterator[Batch]:
    """Return the micro-batches of process `ranks` = (rank, world) from `start_step` to `stop_step`.

    Each step's global batch is cut into accumulate x world equal chunks: first those of the first
    micro-batch, by rank, so that what the processes see at a time are consecutive images;
    `Batch.micro` counts a process's own. What is in a micro-batch depends on
    nothing else: not on the workers, nor on where the run was resumed. Workers start at once. A
    broken sample's place is taken by the next whole one of its micro-batch, cropped by the draws of
    the broken one. Raises LvdError where a batch is not cut evenly; the iterator raises it where a
    worker dies or all of a micro-batch is broken. Without masks, iBOT's loss is taken at all of
    the `patches` of each global view, if at any. Of `resident` images, the workers draw what is
    to be seen, and the views are cut on the device that holds the images.
    """
    rank, world = ranks
    if order.batch_size % (world * accumulate):
        raise LvdError(
            f"batch_size {order.batch_size} cannot be cut into {world} processes x {accumulate} "
            "micro-batches: change batch_size or accumulate"
        )
    size = order.batch_size // (world * accumulate)
    steps = range(start_step, stop_step)
    common = (index, order, views, masks, patches, steps, accumulate, rank, world, size)
    ahead = {"workers": settings.workers, "prefetch": settings.prefetch}
    if resident is None:
        decoded = _DecodedMicroBatches(*common, reduce_to=reduced_side(settings, views))
        return made_by_workers(decoded, **ahead, pin_memory=pin_memory)
    drawn = _DrawnMicroBatches(*common, shapes=resident.shapes, broken=resident.broken)
    drafts = made_by_workers(drawn, **ahead, pin_memory=pin_memory)
    return (draft.shown(resident, views) for draft in drafts)


def loss_places(
    masks: Bool[Tensor, "c p"] | None, crops: int, patches: int
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]] | tuple[None, None]:
    """Return the places of a micro-batch's iBOT loss and their weights: see `Batch.index`.

    Without masks, those of all `patches` of each of `crops` global views; None without either.
    """
    if masks is None and not patches:
        return None, None
    return mask_weights(torch.ones(crops, patches, dtype=torch.bool) if masks is None else masks)


def reduced_side(settings: DataSettings, views: Views) -> int | None:
    """Return the shorter side in pixels down to which images may be decoded; None for all pixels."""
    return views.reduce_to if settings.decode == "reduced" else None


@dataclass
class _MicroBatches(Dataset[Any]):
    """The micro-batches of one process by number, counted from the first of its first step."""

    index: SampleIndex
    order: Order | Mixture
    views: Views
    masks: Masks | None
    patches: int
    steps: range
    accumulate: int
    rank: int
    world: int
    size: int

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __getitem__(self, number: int) -> Batch | _Draft | str:
        """Return a micro-batch, or the line that says why there is none."""
        step, micro = self.steps[number // self.accumulate], number % self.accumulate
        epoch, samples, turns = self.order.batch(step)
        first = (micro * self.world + self.rank) * self.size
        own = slice(first, first + self.size)
        samples, turns = samples[own].tolist(), turns[own].tolist()
        masks = None
        if self.masks is not None:
            masks = self.masks(step=step, epochs=turns, first=first, samples=samples)
        index, weights = loss_places(masks, GLOBAL_VIEWS * len(samples), self.patches)
        batch = partial(Batch, step, micro, epoch, masks=masks, index=index, weights=weights)
        try:
            return self._made(samples, turns, batch)
        except LvdError as error:  # a worker's exception arrives as many lines
            return str(error)

    def _made(self, samples: list[int], turns: list[int], batch: partial[Batch]) -> Batch | _Draft:
        """Return `batch` with keys, views and what is broken; LvdError if all of it is."""
        raise NotImplementedError

    def _all_broken(self, samples: list[int], reason: str) -> LvdError:
        return LvdError(
            f"all {len(samples)} images of a micro-batch are broken, the first, "
            f"{self.index.key(samples[0])}: {reason}: see that the images are whole and within "
            "reach, and run the same command again"
        )


@dataclass
class _DecodedMicroBatches(_MicroBatches):
    """Micro-batches whose images are read, decoded and cropped for them."""

    reduce_to: int | None

    def _made(self, samples: list[int], turns: list[int], batch: partial[Batch]) -> Batch:
        shown, made, broken = self._views_of(samples, turns)
        global_views, local_views, parameters = stack_views(made)
        return batch(
            keys=[self.index.key(sample) for sample in shown],
            global_views=global_views,
            local_views=local_views,
            photometric=parameters,
            broken=broken,
        )

    def _views_of(
        self, samples: list[int], turns: list[int]
    ) -> tuple[list[int], list[SampleViews], list[tuple[str, str]]]:
        """Return for each place the sample that is shown and its views, and what is broken."""
        made: dict[int, SampleViews] = {}
        shown: dict[int, int] = {}
        broken: list[tuple[str, str]] = []
        waiting: list[int] = []

        def fill(places: list[int], image: Tensor, sample: int) -> None:
            for place in places:
                made[place] = self.views(image, samples[place], turns[place])
                shown[place] = sample

        first_whole: tuple[Tensor, int] | None = None
        for place, data in enumerate(self.index.read_each(samples)):
            waiting.append(place)
            image = self._picture(data)
            if isinstance(image, ImageError):
                broken.append((self.index.key(samples[place]), str(image)))
                continue
            first_whole = first_whole or (image, samples[place])
            fill(waiting, image, samples[place])
            waiting = []
        if first_whole is None:
            raise self._all_broken(samples, broken[0][1])
        fill(waiting, *first_whole)
        places = range(len(samples))
        return [shown[place] for place in places], [made[place] for place in places], broken

    def _picture(self, data: bytes | ImageError) -> UInt8[Tensor, "3 h w"] | ImageError:
        try:
            return data if isinstance(data, ImageError) else picture(data, self.reduce_to)
        except ImageError as error:
            return error


@dataclass
class _Draft:
    """A micro-batch but for its views: what they show, and by which draws."""

    batch: partial[Batch]
    samples: NDArray[np.int64]
    draws: Draws

    def pin_memory(self) -> _Draft:
        """Return the draft with what the device is to have of it in page-locked memory."""
        given = self.batch.keywords
        pinned = {
            name: given[name].pin_memory() for name in _FOR_DEVICE if given.get(name) is not None
        }
        return replace(self, batch=partial(self.batch, **pinned))

    def shown(self, images: ResidentImages, views: Views) -> Batch:
        """Return the batch with its views, on the images' device."""
        global_views, local_views = images.cut(self.samples, self.draws, views.settings)
        parameters = {
            name: torch.from_numpy(of.swapaxes(0, 1).reshape(-1, *of.shape[2:]))  # crop-major
            for name, of in self.draws.parameters.items()
        }
        return self.batch(
            global_views=global_views, local_views=local_views, photometric=parameters
        )


@dataclass
class _DrawnMicroBatches(_MicroBatches):
    """Micro-batches of images that lie on the device: only what is drawn for them."""

    shapes: NDArray[np.int32]
    broken: dict[int, str]

    def _made(self, samples: list[int], turns: list[int], batch: partial[Batch]) -> _Draft:
        shown = self._whole(samples)
        return _Draft(
            partial(
                batch,
                keys=[self.index.key(sample) for sample in shown],
                broken=[(self.index.key(s), self.broken[s]) for s in samples if s in self.broken],
            ),
            np.array(shown),
            self.views.draw(samples, turns, self.shapes[shown]),
        )

    def _whole(self, samples: list[int]) -> list[int]:
        """Return for each place its sample or, where that is broken, the next whole one."""
        whole = [sample for sample in samples if sample not in self.broken]
        if not whole:
            raise self._all_broken(samples, self.broken[samples[0]])
        shown, following = [], whole[0]
        for sample in reversed(samples):
            following = following if sample in self.broken else sample
            shown.append(following)
        return shown[::-1]
