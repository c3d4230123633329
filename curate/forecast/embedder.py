"""Measures what an image costs an embedder, on the built-in sample; and says what processor this is."""

from __future__ import annotations

import platform
import re
import tempfile
import time
from pathlib import Path

from PIL.Image import Image

from curate.embedding.embed import Forwards, embed_part
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.forecast.constants import EmbedderCost
from curate.sample.make import make_sample
from curate.state import LocalState
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.parts import PartReader
from shared.embedders.embedder import Embedder, load, resolve_device
from shared.embedders.settings import EmbedderSettings
from shared.pictures.images import ImageError, decode
from shared.storage.commits import committed

FORWARD = 64
"""Images whose forward pass is timed."""


def measure_embedder(settings: EmbedderSettings, work: Path) -> tuple[float, EmbedderCost]:
    """Return the bytes of an image's facts, and what an image of the built-in sample costs.

    Weights do not matter, so models of timm have random ones.
    """
    update = {"pretrained": False} if settings.kind == "timm" else {}
    settings = resolve_device(settings.model_copy(update={**update, "device": "cpu"}))
    with tempfile.TemporaryDirectory(dir=work) as folder:
        home = Path(folder)
        make_sample(home / "sample")
        parts = list_parts("sample", DatasetSettings(path=str(home / "sample" / "crawl")))
        warm_up, part = sorted(parts, key=lambda each: each.nbytes)[:2]
        request = EmbedRequest(home / "work", EmbedSettings(), (settings,), (), 1)
        scratch = home / "work" / "scratch"
        scratch.mkdir(parents=True)
        state = LocalState(Forwards((settings,), 1))
        embed_part(state, warm_up, request, scratch=scratch)
        used = time.process_time()
        done = embed_part(state, part, request, scratch=scratch)
        whole = time.process_time() - used
        made = committed(request.vectors(settings) / done["content"])
        assert made is not None
        facts = sum(file.stat().st_size for file in (request.facts / done["content"]).iterdir())
        images, embedder = made["vectors"], load(settings, 1)
        with PartReader(part, scratch, ()) as reader:
            members = list(reader.members)[:FORWARD]
            prepared = [
                embedder.prepare(picture)
                for picture in (_decoded(reader.read(each), embedder) for each in members)
                if picture is not None
            ]
    embedder.embed(prepared[:8])
    used = time.process_time()
    vectors = embedder.embed(prepared)
    forward = (time.process_time() - used) / len(prepared)
    return facts / images, EmbedderCost(
        dim=vectors.shape[1],
        decode_s=max(0.0, whole / images - forward),
        forward_s=forward,
        torch=settings.kind != "descriptor",
        measured_on=machine(),
    )


def _decoded(data: bytes, embedder: Embedder) -> Image | None:
    """Return the picture, or None of one that cannot be decoded: the sample has some."""
    try:
        return decode(data, reduce_to=embedder.reduce_to)
    except ImageError:
        return None


def machine() -> str:
    """Return what processor this is."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
