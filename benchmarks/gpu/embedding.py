"""Stage one's embedding of a part of JPEGs, from tar to vectors, against the bare forward pass."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch

from benchmarks.gpu.pictures import write_shards
from benchmarks.gpu.section import Context, Row
from benchmarks.gpu.timing import median_lap, peak_gib
from curate.embedding.embed import Forwards, embed_part
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.state import LocalState
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.embedders.embedder import resolve_device
from shared.embedders.settings import EmbedderSettings
from shared.embedders.timm_embedder import build_timm
from shared.storage.commits import committed

SIZE, QUICK_SIZE = 224, 64
QUICK_MODEL = "test_vit"
PICTURES, QUICK_PICTURES = 2048, 8
LARGE_BATCH = 256
THREADS = 8


def measure(context: Context, emit: Callable[[Row], None], model: str) -> None:
    """Embed with a model of timm and random weights, at the default batch and at a large one."""
    count = QUICK_PICTURES if context.quick else PICTURES
    folder = context.scratch / model
    shards = write_shards(folder / "shards", count=count, size=(500, 375), shards=1)
    (part,) = list_parts("pictures", DatasetSettings(path=str(shards)))
    for settings in _at_two_batches(model, context):
        batch_size = settings.batch_size
        forward = batch_size / _forward_seconds(settings, context)
        state = LocalState(Forwards((settings,), THREADS))
        laps = []
        for repetition in range(1 if context.quick else 3):
            work = folder / f"{batch_size}-{repetition}"
            request = EmbedRequest(work, EmbedSettings(), (settings,), (), THREADS)
            scratch = work / "scratch"
            scratch.mkdir(parents=True)
            began = perf_counter()
            done = embed_part(state, part, request, scratch=scratch)
            laps.append(perf_counter() - began)
            made = committed(request.vectors(settings) / done["content"])
            if made["vectors"] != count:
                raise RuntimeError(f"{made['vectors']} vectors of {count} images: {made}")
        stage = count / float(np.median(laps))
        emit(
            {
                "model": settings.model,
                "precision": settings.precision,
                "batch": batch_size,
                "stage images/s": stage,
                "forward images/s": forward,
                "stage / forward": stage / forward,
                "decoding threads": THREADS,
                "peak GiB": peak_gib(torch.device(context.device)),
            }
        )


def measure_compiled(context: Context, emit: Callable[[Row], None], model: str) -> None:
    """Compare the bare forward pass with the compiled one, whose kernels a card runs as one graph."""
    for settings in _at_two_batches(model, context):
        seconds = _forward_seconds(settings, context)
        compiled = _forward_seconds(settings, context, compiled=True)
        emit(
            {
                "model": settings.model,
                "precision": settings.precision,
                "batch": settings.batch_size,
                "forward images/s": settings.batch_size / seconds,
                "compiled images/s": settings.batch_size / compiled,
                "compiled / forward": seconds / compiled,
            }
        )


def _at_two_batches(model: str, context: Context) -> list[EmbedderSettings]:
    """Return the settings of a model with random weights, at the default batch and at a large one."""
    default = EmbedderSettings(
        kind="timm",
        model=QUICK_MODEL if context.quick else model,
        pretrained=False,
        image_size=QUICK_SIZE if context.quick else SIZE,
        device=context.device,
    )
    sizes = [4] if context.quick else [default.batch_size, LARGE_BATCH]
    return [resolve_device(default.model_copy(update={"batch_size": size})) for size in sizes]


def _forward_seconds(
    settings: EmbedderSettings, context: Context, *, compiled: bool = False
) -> float:
    """Return the seconds of the model alone on a batch that lies on the device.

    On a CPU, where it shows nothing, what is compiled is only traced.
    """
    device, precision = torch.device(settings.device), getattr(torch, settings.precision)
    model, _ = build_timm(settings)
    if compiled:
        how = {"mode": "reduce-overhead"} if device.type == "cuda" else {"backend": "aot_eager"}
        model = torch.compile(model, dynamic=False, **how)
    random = torch.Generator(device).manual_seed(0)
    shape = (settings.batch_size, 3, settings.image_size, settings.image_size)
    images = torch.randn(shape, device=device, generator=random)
    images = images.contiguous(memory_format=torch.channels_last)
    enabled = precision != torch.float32
    with torch.inference_mode(), torch.autocast(device.type, precision, enabled=enabled):
        return median_lap(
            lambda: model(images), device, warmup=2, seconds=0.1 if context.quick else 1.0, least=3
        )
