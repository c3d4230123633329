"""Loads micro-batches of views: which samples, read, decoded and cropped, by worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared.errors import LvdError
from shared.images import ImageError
from train.data.crops import SampleViews, Views, stack_views
from train.data.index import ShardIndex
from train.data.order import Order
from train.data.pictures import picture
from train.data.settings import DataSettings
from train.data.workers import start_worker, worker_context


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

    def pin_memory(self) -> Batch:
        """Return the batch with its views and masks in page-locked memory."""
        return replace(
            self,
            global_views=self.global_views.pin_memory(),
            local_views=self.local_views.pin_memory(),
            masks=None if self.masks is None else self.masks.pin_memory(),
        )


class Masks(Protocol):
    """Draws the masks of a micro-batch."""

    def __call__(
        self, *, step: int, epoch: int, first: int, samples: Sequence[int]
    ) -> Bool[Tensor, "2n patches"]:
        """Return the masks of `samples`, which stand at `first` in the global batch of `step`."""


def make_loader(
    index: ShardIndex,
    order: Order,
    views: Views,
    masks: Masks | None = None,
    *,
    settings: DataSettings,
    ranks: tuple[int, int],
    accumulate: int,
    start_step: int,
    stop_step: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Return the micro-batches of process `ranks` = (rank, world) from `start_step` to `stop_step`.

    Each step's global batch is cut into world x accumulate equal chunks, of which a process takes
    `accumulate` consecutive ones; `Batch.micro` counts them. What is in a micro-batch depends on
    nothing else: not on the workers, nor on where the run was resumed. Workers start at once. A
    broken sample's place is taken by the next whole one of its micro-batch, cropped by the draws of
    the broken one. Raises LvdError where a batch is not cut evenly; the iterator raises it where a
    worker dies or all of a micro-batch is broken.
    """
    rank, world = ranks
    if order.batch_size % (world * accumulate):
        raise LvdError(
            f"batch_size {order.batch_size} cannot be cut into {world} processes x {accumulate} "
            "micro-batches: change batch_size or accumulate"
        )
    size = order.batch_size // (world * accumulate)
    reduce_to = views.reduce_to if settings.decode == "reduced" else None
    steps = range(start_step, stop_step)
    micro_batches = _MicroBatches(
        index, order, views, masks, reduce_to, steps, accumulate, rank * accumulate * size, size
    )
    workers = settings.workers
    loader = DataLoader(
        micro_batches,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=settings.prefetch if workers else None,
        multiprocessing_context=worker_context([__name__]) if workers else None,
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else it draws from the global one
    )
    return _batches(iter(loader))


@dataclass
class _MicroBatches(Dataset):
    """The micro-batches of one process by number, counted from the first of its first step."""

    index: ShardIndex
    order: Order
    views: Views
    masks: Masks | None
    reduce_to: int | None
    steps: range
    accumulate: int
    first: int
    """Place of the process's first image in the global batch."""
    size: int

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __getitem__(self, number: int) -> Batch | str:
        """Return a micro-batch, or the line that says why there is none."""
        step, micro = self.steps[number // self.accumulate], number % self.accumulate
        epoch, batch = self.order.batch(step)
        first = self.first + micro * self.size
        samples = batch[first : first + self.size].tolist()
        try:
            shown, made, broken = self._views_of(samples, epoch)
        except LvdError as error:  # a worker's exception arrives as many lines
            return str(error)
        global_views, local_views, parameters = stack_views(made)
        return Batch(
            step=step,
            micro=micro,
            epoch=epoch,
            keys=[self.index.key(sample) for sample in shown],
            global_views=global_views,
            local_views=local_views,
            masks=self.masks and self.masks(step=step, epoch=epoch, first=first, samples=samples),
            photometric=parameters,
            broken=broken,
        )

    def _views_of(
        self, samples: list[int], epoch: int
    ) -> tuple[list[int], list[SampleViews], list[tuple[str, str]]]:
        """Return for each place the sample that is shown and its views, and what is broken."""
        made: dict[int, SampleViews] = {}
        shown: dict[int, int] = {}
        broken: list[tuple[str, str]] = []
        waiting: list[int] = []

        def fill(places: list[int], image: Tensor, sample: int) -> None:
            for place in places:
                made[place] = self.views(image, samples[place], epoch)
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
            key, reason = broken[0]
            raise LvdError(
                f"all {len(samples)} images of a micro-batch are broken, the first, {key}: "
                f"{reason}: see that --shards is whole and within reach, and run the same command "
                "again"
            )
        fill(waiting, *first_whole)
        places = range(len(samples))
        return [shown[place] for place in places], [made[place] for place in places], broken

    def _picture(self, data: bytes | ImageError) -> UInt8[Tensor, "3 h w"] | ImageError:
        try:
            return data if isinstance(data, ImageError) else picture(data, self.reduce_to)
        except ImageError as error:
            return error


def _batches(loaded: Iterator[Batch | str]) -> Iterator[Batch]:
    while True:
        try:
            batch = next(loaded)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # Of a worker that dies while it sends, only the broken connection is known at first.
            if isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error):
                raise
            raise LvdError(
                "a process that loads images died, as when memory or /dev/shm runs out: lower "
                "data.workers or data.prefetch, and run the same command again to go on from the "
                "last checkpoint"
            ) from error
        if isinstance(batch, str):
            raise LvdError(batch)
        yield batch


def _as_it_is(batch: Batch | str) -> Batch | str:
    return batch
