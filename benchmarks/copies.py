"""The model for copies: the folder that it is trained on, and how well it tells copies apart.

`links` makes a folder of links to the shards for `lvd-train run --recipe copies`. `mean` averages the
weights of a model and of what was trained on from it. `table` takes the
pictures of some tars as a pool. To some of them an edited copy is made, one edit each, and one
edited as heavily as the recipe edits its first view. Printed is, for thresholds that so many of the
pool's pictures reach with another picture, the share of copies that reach them too. Other pictures
that look like one and the same by their pixels are left out of the former.

    .venv/bin/python benchmarks/copies.py links DATA OUT CURATED ...
    .venv/bin/python benchmarks/copies.py mean shared/bundled_copies EXPORTED OUT --share 0.75
    .venv/bin/python benchmarks/copies.py table 'DATA/tiny-imagenet/train-0002*.tar'
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path

import click
import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.edited_copies import EDITS
from benchmarks.proof.pool import HELD_OUT
from curate.calibration.same_picture import same_picture, thumbnail
from shared.embedders.embedder import load, settings_for_folder
from shared.embedders.settings import BUNDLED, EmbedderSettings, bundled_settings
from train.data.crops import Views, stack_views
from train.recipe import read_recipe

RATES = (0.05, 0.01, 0.002, 0.0005)
ROOT = Path(__file__).parents[1]
_BLOCK = 512


@click.group()
def main() -> None:
    """Prepare the training data of the model for copies, or score embedders."""


@main.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("curated", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--repeats", default=6, show_default=True, help="How often CURATED stands there.")
@click.option("--photographs", default=HELD_OUT.start, show_default=True, help="Shards of them.")
def links(data: Path, out: Path, curated: tuple[Path, ...], repeats: int, photographs: int) -> None:
    """Fill OUT with links to DATA's Tiny-ImageNet and, REPEATS times, to the shards of CURATED.

    CURATED are OUT folders of `lvd-curate run` without copies, which InfoNCE would drive apart.
    """
    out.mkdir(parents=True)
    shards = sorted((data / "tiny-imagenet").glob("train-*.tar"))[:photographs]
    times = [(f"tiny-{tar.stem}", tar) for tar in shards]
    for number, folder in enumerate(curated):
        for tar in sorted((folder / "shards").glob("*.tar")):
            times += [(f"curated-{number}-{tar.stem}-{n}", tar) for n in range(repeats)]
    for name, tar in times:
        (out / f"{name}.tar").symlink_to(tar.absolute())
    click.echo(f"{len(times)} shards in {out}")


@main.command()
@click.argument("before", type=click.Path(path_type=Path, exists=True))
@click.argument("after", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--share", default=0.75, show_default=True, help="Of AFTER in the mean.")
def mean(before: Path, after: Path, out: Path, share: float) -> None:
    """Write to OUT, as model folder AFTER, the weights between it and BEFORE.

    What is trained on from a model learns the new and forgets some of the old; the mean of their
    weights often does both well (WiSE-FT, arXiv 2109.01903).
    """
    first, second = (load_file(folder / "model.safetensors") for folder in (before, after))
    if len({tuple((name, of[name].shape) for name in sorted(of)) for of in (first, second)}) > 1:
        raise click.ClickException(f"{before} and {after} are not of one architecture and size")
    made = {
        name: ((1 - share) * first[name].float() + share * of.float()).to(of.dtype)
        for name, of in second.items()
    }
    shutil.copytree(after, out)
    save_file(made, out / "model.safetensors", metadata={"format": "pt"})
    click.echo(f"{out}: {share:g} of {after}, the rest of {before}")


@main.command()
@click.argument("pool")
@click.option("--embedder", "embedders", multiple=True, default=("bundled-copies",), show_default=True,
              help="`bundled-copies`, `bundled`, `descriptor`, an ONNX file or resource, or a model folder.")  # fmt: skip
@click.option("--copies", default=1000, show_default=True)
@click.option("--limit", type=int, help="Take only so many pictures.")
@click.option("--config", type=click.Path(path_type=Path), default=ROOT / "pipelines.yaml")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Write the figures here.")
def table(
    pool: str,
    embedders: tuple[str, ...],
    copies: int,
    limit: int | None,
    config: Path,
    as_json: Path | None,
) -> None:
    """Print what embedders make of copies of pictures of POOL, a glob of tars."""
    images = read_pictures(pool, limit)
    copies = min(copies, len(images))
    rng = np.random.default_rng(0)
    of = rng.choice(len(images), copies, replace=False)
    names = [list(EDITS)[n % len(EDITS)] for n in range(copies)]
    planted = [EDITS[name](images[row], rng) for name, row in zip(names, of, strict=True)]
    heavy = heavily_edited([images[row] for row in of], config)
    figures = {}
    for name in embedders:
        click.echo(f"{name}, {len(images):,} pictures, {copies:,} copies")
        figures[name] = score(_embedding(name), images, of, names, planted, heavy)
    if as_json:
        as_json.write_text(json.dumps(figures, indent=2))


def read_pictures(pool: str, limit: int | None = None) -> list[Image.Image]:
    """Return the JPEG pictures of the tars of a glob, in order."""
    images = []
    for name in sorted(glob(pool)):  # noqa: PTH207
        with tarfile.open(name) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    data = tar.extractfile(member).read()
                    images.append(Image.open(io.BytesIO(data)).convert("RGB"))
                if limit and len(images) == limit:
                    return images
    if not images:
        raise click.ClickException(f"no .jpg in {pool}")
    return images


def heavily_edited(images: list[Image.Image], config: Path) -> list[Image.Image]:
    """Return the first view that the recipe `copies` makes of each, with seeds of its own."""
    views = Views(read_recipe(config, "copies").crops, seed=2**40)
    made = stack_views([views(image, n, 0) for n, image in enumerate(images)])[0]
    return [Image.fromarray(view.permute(1, 2, 0).numpy()) for view in made[: len(images)]]


def score(
    embed: Callable[[list[Image.Image]], np.ndarray],
    images: list[Image.Image],
    of: np.ndarray,
    names: list[str],
    planted: list[Image.Image],
    heavy: list[Image.Image],
) -> dict:
    """Return, and print, the share of copies found at each rate of false ones."""
    pool = embed(images)
    false = nearest_other(pool, images)
    single = np.einsum("nd,nd->n", embed(planted), pool[of])
    many = np.einsum("nd,nd->n", embed(heavy), pool[of])
    figures = {}
    for rate in RATES:
        threshold = float(np.quantile(false, 1 - rate))
        by_edit = {
            edit: float((single[np.array(names) == edit] >= threshold).mean()) for edit in EDITS
        }
        figures[str(rate)] = {
            "threshold": threshold,
            "single": float((single >= threshold).mean()),
            "heavy": float((many >= threshold).mean()),
            "by_edit": by_edit,
        }
        text = ", ".join(f"{edit} {share:.2f}" for edit, share in by_edit.items())
        click.echo(
            f"  {rate:7.2%} false at {threshold:.3f}: single {(single >= threshold).mean():.3f}, "
            f"heavy {(many >= threshold).mean():.3f}; {text}"
        )
    return figures


def nearest_other(vectors: np.ndarray, images: list[Image.Image]) -> np.ndarray:
    """Return each picture's cosine to the nearest that is not the same by its pixels."""
    small: dict[int, np.ndarray] = {}

    def seen(row: int) -> np.ndarray:
        if row not in small:
            small[row] = thumbnail(images[row])
        return small[row]

    found = np.empty(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        cosines = vectors[start : start + _BLOCK] @ vectors.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -2
        for at, line in enumerate(cosines):
            for near in np.argsort(-line, kind="stable")[:64]:
                if line[near] < 0.5 or not same_picture(seen(start + at), seen(int(near))):
                    found[start + at] = line[near]
                    break
    return found


def _embedding(name: str) -> Callable[[list[Image.Image]], np.ndarray]:
    if name in BUNDLED:
        settings = bundled_settings(name)
    elif name == "descriptor":
        settings = EmbedderSettings(kind="descriptor")
    elif name.startswith("resource:"):
        graph = {"layout": "NHWC", "dtype": "uint8", "resize": "squash", "output": "embedding"}
        settings = EmbedderSettings(kind="onnx", model=name, image_size=288, graph=graph)
    else:
        settings = settings_for_folder(Path(name))
    embedder = load(settings, threads=1)

    def embed(images: list[Image.Image]) -> np.ndarray:
        made = [
            embedder.embed([embedder.prepare(image) for image in batch])
            for batch in _batches(images, 64)
        ]
        vectors = np.concatenate(made)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return embed


def _batches(images: list[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


if __name__ == "__main__":
    main()
