"""Embedders that are ONNX graphs, with their preprocessing as the settings declare it.

A graph is data: onnxruntime runs no code of it, and no library of custom operators is loaded. Its
weights must be inside the file (at most 2 GB), so that the file's bytes are the model.
"""

from __future__ import annotations

import io
import os
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image
from torchvision import transforms

from shared.embedders.batches import BatchedForward, DeviceMemoryError
from shared.embedders.embedder import graph_file, resolve_device, reword_error
from shared.embedders.evaluation_transform import EvaluationTransform
from shared.embedders.onnx_runtime import CUDA, import_onnxruntime
from shared.embedders.settings import EmbedderSettings, GraphSettings
from shared.errors import LvdError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, NodeArg

LIBRARIES = ("numpy", "PIL", "torchvision", "onnxruntime")
PROVIDERS = {"cuda": CUDA, "cpu": "CPUExecutionProvider"}


def load_preparation(settings: EmbedderSettings) -> EvaluationTransform:
    """Return the resizing and cropping that the settings declare."""
    graph = settings.graph or GraphSettings()
    assert settings.image_size is not None  # see `EmbedderSettings`
    side = graph.resize_to or settings.image_size
    steps = [
        transforms.Resize(
            (side, side) if graph.resize == "squash" else side,
            transforms.InterpolationMode(graph.interpolation),
        ),
        *([partial(_through_jpeg, quality=graph.jpeg)] if graph.jpeg else []),
        transforms.CenterCrop(settings.image_size),
        transforms.ToTensor(),
        transforms.Normalize(graph.mean, graph.std),
    ]
    return EvaluationTransform(transforms.Compose(steps), settings.model, settings.decode)


def _through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def load_forward(settings: EmbedderSettings, threads: int) -> OnnxForward:
    """Return the graph's session. Raises LvdError where it cannot be had, or is another's."""
    settings = resolve_device(settings)
    session = _session(settings, threads)
    with reword_error(settings.model):
        return OnnxForward(session, settings)


class OnnxForward(BatchedForward):
    """A session of a graph from images to vectors or probabilities, behind its normalisation."""

    def __init__(self, session: InferenceSession, settings: EmbedderSettings) -> None:
        super().__init__(settings.model)
        self._session = session
        self._graph = settings.graph or GraphSettings()
        self._classifies = settings.task == "classify"
        self._transform = load_preparation(settings)
        images = _named(session.get_inputs(), self._graph.input, "input", settings.model)
        vectors = _named(session.get_outputs(), self._graph.output, "output", settings.model)
        expected = {"float32": "tensor(float)", "uint8": "tensor(uint8)"}[self._graph.dtype]
        if images.type != expected:
            raise LvdError(
                f"embedder model {settings.model}: its input {images.name} is {images.type}, not "
                f"{expected}: correct graph.dtype"
            )
        if isinstance(images.shape[0], int):
            if images.shape[0] != 1:
                raise LvdError(
                    f"embedder model {settings.model} takes batches of {images.shape[0]} images and "
                    "of no other number: export it with a dynamic batch dimension"
                )
            self._most = 1
        self._input, self._output = images.name, vectors.name
        found = self.encode(np.zeros((1, *self._transform.size, 3), np.uint8))
        self.dim = found.shape[1]
        if self._classifies and not ((found >= 0) & (found <= 1)).all():
            raise LvdError(
                f"embedder model {settings.model}: its output {self._output} gives no probabilities: "
                "export it behind its softmax"
            )

    def encode(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n d"]:
        """Return what `embed` returns of a batch; raise DeviceMemoryError where it has no room."""
        try:
            [vectors] = self._session.run([self._output], {self._input: self._input_of(pixels)})
        except RuntimeError as error:
            if "Failed to allocate memory" not in str(error):
                raise
            raise DeviceMemoryError(" ".join(str(error).split())[:150]) from None
        if vectors.ndim != 2 or len(vectors) != len(pixels):
            raise LvdError(
                f"embedder model {self._model}: its output {self._output} is {vectors.shape} for "
                f"{len(pixels)} images, not a vector of each: name another as graph.output"
            )
        vectors = vectors.astype(np.float32)
        if self._classifies:
            return vectors
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _input_of(self, pixels: UInt8[np.ndarray, "n h w 3"]) -> Shaped[np.ndarray, "n _ _ _"]:
        """Return what the graph takes: [n, h, w, 3] or [n, 3, h, w], of its dtype."""
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        if self._graph.dtype == "float32":
            images = self._transform.normalised(images)
        if self._graph.channels == "BGR":
            images = images.flip(1)
        if self._graph.layout == "NHWC":
            images = images.permute(0, 2, 3, 1)
        return np.ascontiguousarray(images.numpy())


def _session(settings: EmbedderSettings, threads: int) -> InferenceSession:
    onnxruntime = import_onnxruntime()
    provider = PROVIDERS[settings.device]
    if provider not in onnxruntime.get_available_providers():
        raise LvdError(
            f"embedder model {settings.model}: this onnxruntime has no {provider}: install "
            "onnxruntime-gpu in its place, or set device=cpu"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    # Threads that spin between batches would take the processors from those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights outside the file would be read from the working folder: there are none below devnull.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    file = graph_file(settings)
    with reword_error(settings.model):
        session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise LvdError(
            f"embedder model {settings.model}: onnxruntime cannot use {provider} here: set "
            "device=cpu"
        )
    return session


def _named(candidates: list[NodeArg], name: str | None, what: str, model: str) -> NodeArg:
    """Return the input or output of that name; without a name the only one."""
    names = [candidate.name for candidate in candidates]
    if name is None and len(candidates) == 1:
        return candidates[0]
    if name not in names:
        problem = f"has no {what} {name!r}" if name else f"has several {what}s"
        raise LvdError(
            f"embedder model {model} {problem}: name one of {', '.join(names)} as graph.{what}"
        )
    return candidates[names.index(name)]
