"""Filters that see pictures or vectors: images a second of one thread, with decoding and without.

The images are the built-in sample's, or those of a dataset that is named; each is decoded as small as a
filter lets it be. *Bare* is the forward pass alone, of random numbers, by the library that runs the model;
where there is no model, there is none. Seconds are of the processor, so that other jobs count less, and
of the fastest of several rounds.

    .venv/bin/python benchmarks/filters.py
    .venv/bin/python benchmarks/filters.py --images DATA/crawl-small/crawl/00000.tar
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.labelled import CONFIG, write_table
from curate.embedding.embed import preparation
from curate.filters.head import Head
from curate.filters.looks import LOOKS
from curate.sample.make import make_sample
from shared.config import load_yaml
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.parts import PartReader
from shared.embedders.embedder import graph_file, load_forward, resolve_device
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.pictures.images import ImageError, decode

UNTRAINED = EmbedderSettings(
    kind="timm", model="mobilenetv2_100", pretrained=False, image_size=224, task="classify"
)
"""A classifier of timm; what it has learned does not matter to its speed."""
DIMENSIONS, CLASSES = 256, 10


@dataclass(frozen=True)
class Work:
    """What a filter does: `see` each picture, decoded down to `side`, then `judge` all that it saw."""

    name: str
    side: int | None
    see: Callable[[Image.Image], object]
    judge: Callable[[list], object] = len
    bare: Callable[[int], object] | None = None
    """Runs the model alone on so many random inputs."""


@click.command()
@click.option("--images", "path", help="A dataset; by default the built-in sample's crawl.")
@click.option("--limit", default=200, show_default=True, help="Images, at most.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", multiple=True, metavar="FILTER", help="Of those that see pictures.")
def main(path: str | None, limit: int, rounds: int, only: tuple[str, ...]) -> None:
    """Print a row for each filter."""
    with tempfile.TemporaryDirectory() as scratch:
        data = read_images(path, limit, Path(scratch))
    sizes = [decode(each).size for each in data]
    click.echo(f"{len(data)} images, {np.median(sizes, axis=0).astype(int).tolist()} px (median)\n")
    rows = []
    for work in filters():
        if only and work.name not in only:
            continue
        try:
            decoding, seeing, bare = measure(work, data, rounds)
        except LvdError as error:
            click.echo(f"{work.name} is left out: {error}", err=True)
            continue
        row = [f"`{work.name}`", *(f"{len(data) / each:,.0f}" for each in (decoding, seeing))]
        row.append(f"{len(data) / (decoding + seeing):,.0f}")
        if bare:
            row += [f"{len(data) / bare:,.0f}", f"{bare / seeing:.2f}"]
            row.append(f"{bare / (decoding + seeing):.2f}")
        rows.append([*row, *[""] * (7 - len(row))])
    for name, seconds in heads(rounds):
        rows.append([name, "", f"{1 / seconds:,.0f}", *[""] * 4])
    header = "filter", "decode", "without decoding", "with decoding", "bare forward pass"
    click.echo(write_table((*header, "without / bare", "with / bare"), rows))


def read_images(path: str | None, limit: int, scratch: Path) -> list[bytes]:
    """Return the bytes of images that can be decoded."""
    if path is None:
        make_sample(scratch / "sample")
        path = str(scratch / "sample" / "crawl")
    found: list[bytes] = []
    for part in list_parts("images", DatasetSettings(path=path)):
        with PartReader(part, scratch) as reader:
            for member in reader.members:
                try:
                    decode(data := reader.read(member))
                except ImageError:
                    continue
                found.append(data)
                if len(found) == limit:
                    return found
    return found


def filters() -> Iterator[Work]:
    """Give the looks at pictures, and the models that see them."""
    for look in LOOKS.values():
        yield Work(look.name, look.side, look.take)
    declared = EmbedderSettings(**load_yaml(CONFIG)["embedders"]["nsfw"])
    for name, settings, bare in (
        ("nsfw", declared, run_graph),
        ("classifier", resolve_device(UNTRAINED), run_network),
    ):
        try:
            forward = load_forward(settings, 1)
        except LvdError as error:
            click.echo(f"{name} is left out: {error}", err=True)
            continue
        prepared, batch = preparation(settings), settings.batch_size

        def judge(seen: Sequence, forward=forward, batch=batch) -> None:
            for at in range(0, len(seen), batch):
                forward.embed(seen[at : at + batch])

        yield Work(name, prepared.reduce_to, prepared.prepare, judge, bare(settings))


def run_graph(settings: EmbedderSettings) -> Callable[[int], object]:
    """Return what runs an ONNX graph by onnxruntime alone, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    content = graph_file(settings).read_bytes()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    [asked] = session.get_inputs()
    rng, side = np.random.default_rng(0), settings.image_size
    images = rng.standard_normal((settings.batch_size, side, side, 3), np.float32)

    def run(count: int) -> None:
        for at in range(0, count, len(images)):
            session.run(None, {asked.name: images[: count - at]})

    return run


def run_network(settings: EmbedderSettings) -> Callable[[int], object]:
    """Return what runs a network by timm and torch alone, on one thread, as a run has it in memory."""
    import timm
    import torch

    torch.set_num_threads(1)
    layout, side = torch.channels_last, settings.image_size
    network = timm.create_model(settings.model).eval().to(memory_format=layout)
    images = torch.randn(settings.batch_size, 3, side, side).to(memory_format=layout)

    def run(count: int) -> None:
        enabled = settings.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for at in range(0, count, len(images)):
                network(images[: count - at])

    return run


def measure(work: Work, data: Sequence[bytes], rounds: int) -> tuple[float, float, float]:
    """Return the least seconds of the processor for decoding, seeing and judging, and the bare model."""
    times = np.zeros((rounds, 3))
    for each in times:
        started = time.process_time()
        pictures = [decode(one, reduce_to=work.side) for one in data]
        each[0] = time.process_time() - started
        started = time.process_time()
        work.judge([work.see(picture) for picture in pictures])
        each[1] = time.process_time() - started
        if work.bare is not None:
            started = time.process_time()
            work.bare(len(data))
            each[2] = time.process_time() - started
    return tuple(times.min(0).tolist())


def heads(rounds: int, count: int = 100_000) -> Iterator[tuple[str, float]]:
    """Give filters of vectors that are there, and the seconds that an image takes."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((count, DIMENSIONS)).astype(np.float16)
    for outputs in (1, CLASSES):
        weight = rng.standard_normal((outputs, DIMENSIONS))
        head = Head(weight, np.zeros(outputs), np.arange(1))
        best = np.inf
        for _ in range(rounds):
            started = time.process_time()
            head.score(vectors)
            best = min(best, time.process_time() - started)
        name = "`head`" if outputs == 1 else "`prompts`"
        yield f"{name}, {outputs} x {DIMENSIONS}", best / count


if __name__ == "__main__":
    main()
