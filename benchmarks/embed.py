"""Stage embed against its limit: images/s of a whole part over 1 / (decode + bare forward pass).

Both sides run in one process with the same threads, alternating. Rates are by the seconds of the
processor, the last ratio by the clock too. The images are the built-in sample's. `--memory` compares the peak memory of a worker after 10 and after 100 parts.

    .venv/bin/python benchmarks/embed.py --model vit_small_patch14_dinov2.lvd142m
    .venv/bin/python benchmarks/embed.py --declared bundled --threads 1
"""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np

from curate.embedding.embed import Forwards, embed_part
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.sample.make import make_sample
from curate.settings import with_bundled
from curate.state import LocalState
from shared.config import load_yaml
from shared.datasets.dataset import DatasetSettings, Part, list_parts
from shared.datasets.parts import PartReader
from shared.embedders.embedder import load, resolve_device
from shared.embedders.settings import EmbedderSettings
from shared.pictures.images import ImageError, decode, read_header

PIPELINES = Path(__file__).parents[1] / "pipelines.yaml"


def decode_all(part, embedder, threads: int, scratch: Path) -> list[np.ndarray]:
    """Read, hash, decode and prepare every image of a part: what no embed stage can go without."""

    def prepare(member):
        try:
            data = reader.read(member)
            hashlib.sha256(data).hexdigest()
            read_header(data)
            return embedder.prepare(decode(data, reduce_to=embedder.reduce_to))
        except ImageError:
            return None

    with PartReader(part, scratch, ()) as reader, ThreadPoolExecutor(threads) as pool:
        return [image for image in pool.map(prepare, reader.members) if image is not None]


def peak_memory(parts: int, settings: EmbedderSettings, threads: int) -> float:
    """Return the peak MiB of a process that embeds `parts` parts one after the other."""
    code = "import sys; from embed import _embed_many; _embed_many(sys.argv[1:])"
    arguments = [str(parts), settings.model_dump_json(), str(threads)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def _embed_many(arguments: list[str]) -> None:
    count, settings, threads = int(arguments[0]), arguments[1], int(arguments[2])
    configured = EmbedderSettings.model_validate_json(settings)
    with tempfile.TemporaryDirectory() as folder:
        parts = _parts(Path(folder))
        state = LocalState(Forwards((configured,), threads))
        for number in range(count):
            request = _request(Path(folder) / f"work-{number}", configured, threads)
            embed_part(state, parts[number % len(parts)], request, scratch=_scratch(request))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _parts(folder: Path, images: int = 600) -> list[Part]:
    make_sample(folder / "sample", images=images)
    return list_parts("sample", DatasetSettings(path=str(folder / "sample" / "crawl")))


def _request(work: Path, settings: EmbedderSettings, threads: int) -> EmbedRequest:
    return EmbedRequest(work, EmbedSettings(), (settings,), (), threads)


def _scratch(request: EmbedRequest) -> Path:
    scratch = request.work / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return scratch


def _now() -> np.ndarray:
    """Return the seconds of the processor that this process took, and those of the clock."""
    return np.array([time.process_time(), time.perf_counter()])


@click.command()
@click.option("--model", default="vit_small_patch16_224", help="A timm model; random weights.")
@click.option("--declared", help="An embedder of pipelines.yaml, or a bundled one, instead.")
@click.option("--descriptor", is_flag=True, help="The descriptor instead of a model.")
@click.option("--size", default=224)
@click.option("--threads", default=2)
@click.option("--repetitions", default=3)
@click.option("--images", default=600, help="So many in six parts, 100 or more.")
@click.option("--memory", is_flag=True)
def main(model, declared, descriptor, size, threads, repetitions, images, memory) -> None:
    """Print images/s of both sides and their ratio."""
    settings = (
        EmbedderSettings(kind="descriptor")
        if descriptor
        else EmbedderSettings(kind="timm", model=model, pretrained=False, image_size=size)
    )
    settings = resolve_device(settings)
    if declared:
        declarations = with_bundled(load_yaml(PIPELINES))["embedders"]
        settings = resolve_device(EmbedderSettings(**declarations[declared]))
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        parts = _parts(Path(folder), images)
        embedder = load(settings, threads)
        state = LocalState(Forwards((settings,), threads))
        embedder.embed(decode_all(parts[0], embedder, threads, Path(folder))[: settings.batch_size])
        for repetition in range(repetitions + 1):
            part = parts[repetition % len(parts)]
            started = _now()
            prepared = decode_all(part, embedder, threads, Path(folder))
            decoded = _now()
            for at in range(0, len(prepared), settings.batch_size):
                embedder.embed(prepared[at : at + settings.batch_size])
            forward = _now()
            request = _request(Path(folder) / f"work-{repetition}", settings, threads)
            embed_part(state, part, request, scratch=_scratch(request))
            stage = _now()
            if not repetition:  # the first warms up
                continue
            ratios.append((forward - started) / (stage - forward))
            taken = (decoded - started, forward - decoded, forward - started, stage - forward)
            sides = zip(("decode", "forward", "limit", "stage"), taken, strict=True)
            rates = (f"{name} {len(prepared) / seconds[0]:7.1f}/s" for name, seconds in sides)
            click.echo(f"{'  '.join(rates)}  ratio {ratios[-1][0]:.3f}")
    cpu, clock = np.median(ratios, axis=0)
    least, most = np.min(ratios, axis=0)[0], np.max(ratios, axis=0)[0]
    click.echo(
        f"ratio {cpu:.3f} (median; {least:.3f} to {most:.3f}), by the clock {clock:.3f}, "
        f"{settings.precision}, {threads} threads"
    )
    if memory:
        few, many = (peak_memory(count, settings, threads) for count in (10, 100))
        click.echo(f"peak memory {few:.0f} MiB after 10 parts, {many:.0f} MiB after 100")


if __name__ == "__main__":
    main()
