"""Make a pool with planted copies of edits that no training and no calibration makes: for truth.py.

The pictures are labelled ones that nothing was trained or tuned on; some of each class that is wanted
become the seed. One edit a copy, but for `two`, which makes two of them at once.

    .venv/bin/python benchmarks/unknown_edits.py POOL DATA/tiny-imagenet/val-*.tar
    .venv/bin/lvd-curate run --pipeline sample --crawl POOL/crawl --seed POOL/seed --out OUT
    .venv/bin/python benchmarks/truth.py OUT POOL/truth.csv --photographs wanted --photographs other \\
        --seed-kinds wanted
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.edited_copies import Edit
from benchmarks.proof.pool import IN_A_SHARD, jpeg, read_labelled, write_tar

TRUTH = ("member", "kind", "copy_of", "transform", "label")


def _letterbox(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    bar = float(rng.uniform(0.12, 0.2))
    black = (0, 0, 0)
    if rng.random() < 0.5:
        return ImageOps.expand(image, (0, round(bar * height)), black)
    return ImageOps.expand(image, (round(bar * width), 0), black)


def _squash(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.resize((round(image.width * rng.uniform(1.4, 1.8)), image.height))


def _gamma(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    power = float(rng.uniform(1.7, 2.2))
    power = power if rng.random() < 0.5 else 1 / power
    return image.point([round(255 * (n / 255) ** power) for n in range(256)] * 3)


def _sharpen(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.UnsharpMask(2, int(rng.integers(150, 300)), 0))


def _palette(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.quantize(int(rng.integers(16, 65)))


def _posterise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageOps.posterize(image, int(rng.integers(2, 4)))


def _watermark(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = min(image.size)
    layer = Image.new("RGBA", (2 * side, 2 * side))
    pen, font = ImageDraw.Draw(layer), ImageFont.load_default(max(6, side // 6))
    text = "".join(rng.choice(list("ABCDEFGHKLMN"), 6))
    for row, top in enumerate(range(0, 2 * side, side // 3)):
        for left in range(-side // 3 * (row % 2), 2 * side, round(side * 0.8)):
            pen.text((left, top), text, fill=(255, 255, 255, 110), font=font)
    layer = layer.rotate(30).crop(
        (side // 2, side // 2, side // 2 + image.width, side // 2 + image.height)
    )
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def _crop60(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return 60 % of the area, as large as the whole was."""
    wide, high = (round(side * 0.6**0.5) for side in image.size)
    left, top = (int(rng.integers(0, n + 1)) for n in (image.width - wide, image.height - high))
    return image.crop((left, top, left + wide, top + high)).resize(image.size)


def _vignette(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    rows, columns = (np.linspace(-1, 1, side) for side in (image.height, image.width))
    light = 1 - float(rng.uniform(0.35, 0.5)) * (rows[:, None] ** 2 + columns**2)
    values = np.asarray(image, np.float64) * light[..., None].clip(0)
    return Image.fromarray(values.round().astype(np.uint8))


def _screenshot(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a window around the picture, which is some half of it."""
    width, height = image.size
    left, right, above, below = width // 4, width // 8, height // 5, height // 8
    ground = int(rng.integers(220, 250))
    window = Image.new("RGB", (left + width + right, above + height + below), (ground,) * 3)
    pen = ImageDraw.Draw(window)
    pen.rectangle((0, 0, window.width, above // 2), fill=(60, 80, int(rng.integers(90, 180))))
    for top in range(above, window.height, max(4, height // 8)):
        pen.rectangle((2, top, left - 4, top + max(1, height // 32)), fill=(120, 120, 120))
    window.paste(image, (left, above))
    return window


def _turn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.rotate(90 if rng.random() < 0.5 else 270, expand=True)


SINGLE: dict[str, Edit] = {
    "letterbox": _letterbox,
    "squash": _squash,
    "gamma": _gamma,
    "sharpen": _sharpen,
    "posterise": _posterise,
    "watermark": _watermark,
    "crop60": _crop60,
    "vignette": _vignette,
    "screenshot": _screenshot,
}


def _two(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for name in rng.choice(list(SINGLE), 2, replace=False):
        image = SINGLE[name](image, rng)
    return image


EDITS: dict[str, Edit] = {
    **SINGLE,
    "two": _two,
    "turn": _turn,
    "gif": _palette,
    "png": _palette,
}
"""`gif` and `png` are saved as that, with the palette; the others as JPEG of quality 90."""


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("tars", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--copies", default=650, show_default=True)
@click.option("--classes", default=20, show_default=True, help="That the seed shows.")
@click.option("--seeds", default=10, show_default=True, help="Pictures of each.")
@click.option("--seed", default=0, show_default=True, help="Of all that is drawn at random.")
def main(
    out: Path, tars: tuple[Path, ...], copies: int, classes: int, seeds: int, seed: int
) -> None:
    """Write OUT/crawl, OUT/seed and OUT/truth.csv, of the labelled pictures of TARS."""
    rng = np.random.default_rng(seed)
    pictures = read_labelled(tars)
    wanted = sorted(rng.choice(sorted(pictures), classes, replace=False).tolist())
    shown = {label: pictures[label][:seeds] for label in wanted}
    originals = [
        (label, data)
        for label in sorted(pictures)
        for data in pictures[label][seeds if label in shown else 0 :]
    ]
    rows = [(label, data, None, "") for label, data in originals]
    for n, source in enumerate(rng.choice(len(originals), copies, replace=False).tolist()):
        label, data = originals[source]
        edit = list(EDITS)[n % len(EDITS)]
        picture = EDITS[edit](Image.open(io.BytesIO(data)).convert("RGB"), rng)
        rows.append((label, _saved(picture, edit), source, edit))
    order = rng.permutation(len(rows)).tolist()
    place = {row: n for n, row in enumerate(order)}
    (out / "crawl").mkdir(parents=True)
    (out / "seed").mkdir()
    for start in range(0, len(order), IN_A_SHARD):
        here = enumerate(order[start : start + IN_A_SHARD], start)
        members = ((f"{n:06d}.{_ending(rows[row][3])}", rows[row][1]) for n, row in here)
        write_tar(out / "crawl" / f"{start // IN_A_SHARD:05d}.tar", members)
    with (out / "truth.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(TRUTH)
        for n, row in enumerate(order):
            label, _, source, edit = rows[row]
            of = "" if source is None else f"{place[source]:06d}"
            kind = "wanted" if label in shown else "other"
            table.writerow((f"{n:06d}", kind, of, edit, label))
    for label, of_class in shown.items():
        for n, data in enumerate(of_class):
            (out / "seed" / f"{label:04d}-{n:03d}.jpg").write_bytes(data)
    click.echo(f"{len(rows):,} images, {copies:,} of them copies; seed of {classes} classes")


def _saved(picture: Image.Image, edit: str) -> bytes:
    if _ending(edit) == "jpg":
        return jpeg(picture, 90)
    buffer = io.BytesIO()
    picture.save(buffer, edit.upper())
    return buffer.getvalue()


def _ending(edit: str) -> str:
    return edit if edit in ("gif", "png") else "jpg"


if __name__ == "__main__":
    main()
