"""How often the second look at copies (`curate/pixels`) errs: on edited copies, and on look-alikes.

The look-alikes are the hardest: of a sample of pictures, those whose nearest other picture by an
embedder is nearest. The pictures themselves may hold copies that nobody lists: the pairs that are
called copies are printed, to be looked at.

    .venv/bin/python benchmarks/second_look.py '/data/tiny-imagenet/train-0001?.tar'
"""

from __future__ import annotations

import io
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from curate.pixels.same import is_clear_copy, judge
from shared.embedders.embedder import load
from shared.embedders.settings import EmbedderSettings, bundled_settings

Pictures = dict[str, bytes]
EMBEDDERS = {"descriptor": EmbedderSettings(kind="descriptor"), "bundled": bundled_settings()}


@click.command()
@click.argument("tars")
@click.option("--originals", default=50, help="Pictures that are edited.")
@click.option("--sample", default=3000, help="Pictures whose nearest other is looked for.")
@click.option("--hardest", default=150, help="Look-alikes of each embedder that are judged.")
@click.option("--seed", default=7)
def main(tars: str, originals: int, sample: int, hardest: int, seed: int) -> None:
    """Print how many edited copies are known again, and how many look-alikes are told apart."""
    pictures = read(tars)
    names = list(pictures)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(names), min(sample, len(names)), replace=False)
    click.echo(f"{len(names):,} pictures")
    started, count, all_edits = time.process_time(), 0, Counter()
    for name, edit in EDITS.items():
        verdicts = Counter()
        for row in chosen[:originals].tolist():
            image = opened(pictures[names[row]])
            verdicts[judge(image, edit(image, np.random.default_rng([seed, row])))] += 1
            count += 1
        all_edits += verdicts
        click.echo(f"  {name:<14} {told(verdicts)}")
    click.echo(f"edited copies    {told(all_edits)}")
    click.echo(f"  {(time.process_time() - started) / count * 1000:.0f} ms of a processor a pair")
    for embedder, settings in EMBEDDERS.items():
        pairs = look_alikes(pictures, names, chosen, settings, hardest)
        started, verdicts = time.process_time(), Counter()
        for one, other in pairs:
            verdict = judge(*(opened(pictures[name]) for name in (one, other)))
            verdicts[verdict] += 1
            if verdict == "same":
                click.echo(f"  called copies: {one} {other}")
        click.echo(f"look-alikes by {embedder}: {told(verdicts)}")
        click.echo(f"  {(time.process_time() - started) / len(pairs) * 1000:.0f} ms a pair")
        clear = [
            pair for pair in pairs if is_clear_copy(*(opened(pictures[name]) for name in pair))
        ]
        click.echo(f"  for certain: {clear}")


def read(tars: str) -> Pictures:
    """Return the JPEGs of all tars of a pattern."""
    pictures = {}
    for path in sorted(Path(tars).parent.glob(Path(tars).name)):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    pictures[f"{path.name}/{member.name}"] = tar.extractfile(member).read()
    return pictures


def opened(data: bytes) -> Image.Image:
    """Return a picture in RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def look_alikes(
    pictures: Pictures, names: list[str], chosen: np.ndarray, settings: EmbedderSettings, most: int
) -> list[tuple[str, str]]:
    """Return the `most` pairs of highest cosine of a chosen picture and its nearest other."""
    embedder = load(settings, 1)
    blocks = []
    for at in range(0, len(names), 64):
        some = [opened(pictures[name]) for name in names[at : at + 64]]
        blocks.append(embedder.embed([embedder.prepare(image) for image in some]))
    vectors = np.concatenate(blocks)
    cosines = vectors[chosen] @ vectors.T
    cosines[np.arange(len(chosen)), chosen] = -2
    hardest = np.argsort(-cosines.max(1), kind="stable")[:most]
    nearest = cosines.argmax(1)
    return [(names[chosen[row]], names[nearest[row]]) for row in hardest]


def told(verdicts: Counter) -> str:
    """Return counts in words."""
    total = verdicts.total()
    return "  ".join(
        f"{name} {verdicts[name]:>4} ({verdicts[name] / total:.1%})"
        for name in ("same", "unsure", "other")
    )


def cropped(image: Image.Image, rng: np.random.Generator, share: float = 0.8) -> Image.Image:
    """Return a part of both sides' `share`."""
    width, height = (round(side * share) for side in image.size)
    left, top = (
        int(rng.integers(0, whole - part + 1))
        for whole, part in zip(image.size, (width, height), strict=True)
    )
    return image.crop((left, top, left + width, top + height))


def bordered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture with 15% of any colour around it."""
    colour = tuple(rng.integers(0, 256, 3).tolist())
    return ImageOps.expand(image, tuple(round(0.15 * side) for side in image.size), colour)


def captioned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture with words below it."""
    width, height = image.size
    result = Image.new("RGB", (width, round(1.2 * height)), "white")
    result.paste(image)
    ImageDraw.Draw(result).text((3, height + 1), "some words here", "black")
    return result


def banded(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture with a band of words across it."""
    result, (width, height) = image.copy(), image.size
    draw = ImageDraw.Draw(result)
    draw.rectangle((0, round(0.75 * height), width, round(0.92 * height)), "black")
    draw.text((3, round(0.75 * height)), "HELLO WORLD", "white")
    return result


def turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture rotated by 5 degrees."""
    return image.rotate(5 * float(rng.choice([-1, 1])), Image.Resampling.BICUBIC)


def recoloured(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture in other hues."""
    pixels = np.asarray(image.convert("HSV")).copy()
    pixels[..., 0] += np.uint8(rng.integers(15, 60))
    return Image.fromarray(pixels, "HSV").convert("RGB")


def tinted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the picture with each colour stronger or weaker."""
    pixels = np.asarray(image) * rng.uniform(0.6, 1.4, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def reencoded(image: Image.Image, quality: int) -> Image.Image:
    """Return what a JPEG leaves of it."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return opened(stream.getvalue())


EDITS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "mirror": lambda image, rng: ImageOps.mirror(image),
    "crop to 80%": cropped,
    "half the area": lambda image, rng: cropped(image, rng, 0.707),
    "border of 15%": bordered,
    "caption": captioned,
    "band of words": banded,
    "5 degrees": turned,
    "hue": recoloured,
    "tint": tinted,
    "grey": lambda image, rng: ImageOps.grayscale(image).convert("RGB"),
    "contrast": lambda image, rng: ImageEnhance.Contrast(image).enhance(0.5),
    "brightness": lambda image, rng: ImageEnhance.Brightness(image).enhance(1.5),
    "blur": lambda image, rng: image.filter(ImageFilter.GaussianBlur(0.015 * min(image.size))),
    "a third": lambda image, rng: image.reduce(3),
    "JPEG 20": lambda image, rng: reencoded(image, 20),
    "squeezed": lambda image, rng: image.resize((round(0.75 * image.width), image.height)),
    "several": lambda image, rng: reencoded(ImageOps.mirror(cropped(image, rng)), 30),
}


if __name__ == "__main__":
    main()
