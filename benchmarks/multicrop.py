r"""Multi-crop against plain Pillow: images/s of one core, from compressed bytes to finished views.

Pillow's side is DINO's own pipeline: Pillow pictures through torchvision's transforms, to
normalised float tensors. Ours makes micro-batches of bytes, as a loader's worker does; it is timed
a second time with the normalisation that is left to the training process. All sides take turns in
one process of one thread, and processor time is counted: so a busy machine slows all of them. The
allocator is set as by `train.launch`.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 \
    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.multicrop
"""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from itertools import count

import click
import numpy as np
import skimage.data
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms

from shared.pictures.images import decode
from train.data.crops import IMAGENET_MEAN, IMAGENET_STD, Views, normalise, stack_views
from train.data.settings import CropSettings

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def pillow_pipeline(settings: CropSettings) -> Callable[[list[bytes]], object]:
    """Return the plain pipeline: compressed images to lists of normalised views."""

    def view(size: int, area: tuple[float, float], blur: float, solarise: float) -> Callable:
        bicubic = transforms.InterpolationMode.BICUBIC
        jitter = transforms.ColorJitter(*settings.jitter)

        def blurred(image: Image.Image) -> Image.Image:
            if random.random() > blur:
                return image
            return image.filter(ImageFilter.GaussianBlur(random.uniform(*settings.blur_sigma)))

        def solarised(image: Image.Image) -> Image.Image:
            return ImageOps.solarize(image) if random.random() < solarise else image

        return transforms.Compose(
            [
                transforms.RandomResizedCrop(size, area, interpolation=bicubic),
                transforms.RandomHorizontalFlip(settings.flip),
                transforms.RandomApply([jitter], p=settings.jitter_probability),
                transforms.RandomGrayscale(settings.grey),
                blurred,
                solarised,
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    first, second, local = settings.blur
    views = [
        view(settings.global_size, settings.global_area, first, 0.0),
        view(settings.global_size, settings.global_area, second, settings.solarise),
        *[view(settings.local_size, settings.local_area, local, 0.0)] * settings.local_views,
    ]

    def run(images: list[bytes]) -> object:
        opened = (Image.open(io.BytesIO(data)).convert("RGB") for data in images)
        return [[make(image) for make in views] for image in opened]

    return run


def our_pipeline(settings: CropSettings, normalised: bool) -> Callable[[list[bytes]], object]:
    """Return ours: compressed images to one micro-batch of views, as bytes or normalised."""
    views, sample = Views(settings, seed=0), count()

    def run(images: list[bytes]) -> object:
        opened = (decode(data, reduce_to=views.reduce_to) for data in images)
        made = stack_views([views(image, next(sample), 0) for image in opened])
        return [normalise(crops) for crops in made[:2]] if normalised else made

    return run


def photographs(size: tuple[int, int], form: str, number: int) -> list[bytes]:
    """Return `number` crops of scikit-image's photographs, compressed."""
    chosen = random.Random(0)
    images = []
    for turn in range(number):
        name = PHOTOGRAPHS[turn % len(PHOTOGRAPHS)]
        photograph = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        zoom = chosen.uniform(0.6, 1.0) * min(
            photograph.width / size[0], photograph.height / size[1]
        )
        wide, high = size[0] * zoom, size[1] * zoom
        left = chosen.uniform(0, photograph.width - wide)
        top = chosen.uniform(0, photograph.height - high)
        box = (left, top, left + wide, top + high)
        file = io.BytesIO()
        photograph.resize(size, Image.Resampling.BICUBIC, box).save(file, form, quality=90)
        images.append(file.getvalue())
    return images


def compare(settings: CropSettings, images: list[bytes], rounds: int) -> None:
    """Print images/s of one core of each side, and the medians of the rounds' ratios."""
    deferred = settings.model_copy(update={"device": "gpu"})
    sides = {
        "Pillow": pillow_pipeline(settings),
        "ours": our_pipeline(settings, normalised=False),
        "ours, normalised": our_pipeline(settings, normalised=True),
        "ours, crops alone": our_pipeline(deferred, normalised=False),
        "decoding alone": lambda images: [decode(data) for data in images],
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds + 1):
        for side, run in sides.items():
            started = time.process_time()
            run(images)
            times[side].append((time.process_time() - started) / len(images))
    # The first round warms up.
    pillow = np.array(times["Pillow"][1:])
    for side, taken in times.items():
        each = np.array(taken[1:])
        click.echo(
            f"  {side:18} {1 / np.median(each):8.1f} images/s per core {np.median(each) * 1e3:7.2f} ms"
            f" {np.median(pillow / each):7.2f} x Pillow"
        )


@click.command()
@click.option("--rounds", default=11)
@click.option("--images", default=16, help="Images of a micro-batch.")
def main(rounds: int, images: int) -> None:
    """Compare both sides on photographs and on pictures of 32 px."""
    torch.set_num_threads(1)
    click.echo("500x375 JPEG to 2 views of 224 px and 8 of 98 px")
    compare(CropSettings(), photographs((500, 375), "JPEG", images), rounds)
    click.echo("32x32 PNG to 2 views of 32 px and 8 of 16 px")
    small = CropSettings(global_size=32, local_size=16)
    compare(small, photographs((32, 32), "PNG", images), rounds)


if __name__ == "__main__":
    main()
