"""Opens what a run trains on: the index of its images, and the order in which they are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.datasets.dataset import DatasetSettings, list_parts
from shared.errors import LvdError
from train.data.index import SampleIndex, ShardIndex, read_index
from train.data.mixture import MixedIndex, Mixture
from train.data.order import Order
from train.data.selection import SelectionIndex, count_selected, read_selection
from train.recipe import Recipe
from train.seeds import derive


def open_index(recipe: Recipe, shards: str | None, select: str | None, folder: Path) -> SampleIndex:
    """Return the index of the images of a run, made in `folder` where it is not there.

    A folder that the recipe names (`data.index`) is taken in place of it.
    `shards` and `select` are the options of `lvd-train run`, None for both where the recipe mixes.
    Raises LvdError where the images are not there.
    """
    if recipe.data.index is not None:
        folder = _writable(Path(recipe.data.index).expanduser())
    if not recipe.data.mix:
        return _open(shards, select, folder)
    sources = {}
    for name, source in recipe.data.mix.items():
        with _named(name):
            sources[name] = _open(source.shards, source.select, folder)
    return MixedIndex(sources)


def make_order(recipe: Recipe, index: SampleIndex) -> Order | Mixture:
    """Return the order of the samples of an index that `open_index` returned.

    Raises LvdError where there are fewer images than a batch takes.
    """
    if not isinstance(index, MixedIndex):
        assert isinstance(index, ShardIndex | SelectionIndex)  # of `open_index`
        return _order(recipe, index, batch_size=recipe.batch_size, seed=recipe.seed)
    orders = {}
    for name, source in index.sources.items():
        assert isinstance(source, ShardIndex | SelectionIndex)
        with _named(name):
            seed = derive(recipe.seed, "source", name)
            orders[name] = _order(recipe, source, batch_size=1, seed=seed), len(source)
    return Mixture(
        orders,
        [source.ratio for source in recipe.data.mix.values()],
        batch_size=recipe.batch_size,
        batches=recipe.data.mix_batches,
        seed=recipe.seed,
    )


def describe_sources(recipe: Recipe, shards: str | None, select: str | None) -> list[str]:
    """Return lines that say where the images of a run are, for the dry run; lists no shard.

    Raises LvdError where they are not there.
    """
    if not recipe.data.mix:
        return _describe(shards, select)
    lines, whole = [], sum(source.ratio for source in recipe.data.mix.values())
    for name, source in recipe.data.mix.items():
        with _named(name):
            title = f"{source.ratio / whole:.1%} {name}"
            lines += [f"{title:<20}{recipe.data.mix_batches} batches"]
            lines += [f"  {line}" for line in _describe(source.shards, source.select)]
    return lines


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LvdError(
            f"data.index {folder} cannot be made ({error.strerror}): name another folder, or leave it "
            "away"
        ) from error
    return folder


def _open(shards: str | None, select: str | None, folder: Path) -> ShardIndex | SelectionIndex:
    if select is not None:
        return read_selection(select, shards, folder)
    assert shards is not None  # checked by `Recipe.check_sources`
    return read_index(shards, folder)


def _order(
    recipe: Recipe, index: ShardIndex | SelectionIndex, *, batch_size: int, seed: int
) -> Order:
    return Order(
        index.sizes,
        batch_size=batch_size,
        window=recipe.data.window,
        seed=seed,
        weights=index.weights,
    )


def _describe(shards: str | None, select: str | None) -> list[str]:
    lines = []
    if select is not None:
        lines.append(f"{'selection':<20}{count_selected(select):,} images in {select}")
    if shards is not None:
        parts = list_parts("--shards", DatasetSettings(path=shards))
        volume = sum(part.nbytes for part in parts)
        lines.append(f"{'shards':<20}{len(parts):,} ({volume / 1e6:,.1f} MB) at {shards}")
    return lines


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Let errors say which source of a mixture they are of."""
    try:
        yield
    except LvdError as error:
        raise LvdError(f"data.mix.{source}: {error}") from error
