import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from model_folders import make_open_clip_folder, make_timm_folder
from PIL import Image
from pydantic import ValidationError

from shared.embedders.embedder import (
    identity,
    load,
    load_forward,
    load_preparation,
    resolve,
    resolve_device,
    resolve_identity,
    runtime,
    settings_for_folder,
)
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError


def picture(seed: int, width: int = 200, height: int = 150) -> Image.Image:
    """A smooth random picture: blobs of colour, unlike any other seed's."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def random_timm(**settings) -> EmbedderSettings:
    given = {"model": "vit_tiny_patch16_224", "image_size": 64, "precision": "float32"}
    given |= {"pretrained": False, "device": "cpu"}
    return EmbedderSettings(kind="timm", **(given | settings))


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    return make_timm_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory):
    return make_open_clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"kind": "timm"}, "need 'model'"),
        ({"kind": "timm", "model": "resnet18", "pretrained": "weights.pth"}, ".safetensors"),
        ({"kind": "open_clip", "model": "ViT-B-32"}, "tag"),
        ({"kind": "descriptor", "model": "resnet18"}, "remove it"),
        ({"kind": "timm", "model": "local-dir:x", "pretrained": "a.safetensors"}, "own weights"),
        ({"kind": "timm", "model": "resnet18", "batch_size": 0}, "batch_size"),
        ({"kind": "timm", "model": "resnet18", "thresholds": {"dedup": 1.5}}, "dedup"),
        ({"kind": "timm", "model": "resnet18", "colour": 1}, "colour"),
        ({"kind": "timm", "model": "resnet18", "graph": {}}, "have no 'graph'"),
        ({"kind": "timm", "model": "local-dir:x", "revision": "main"}, "not of the hub"),
        ({"kind": "timm", "model": "resnet18", "pretrained": False, "revision": "a"}, "not of"),
        ({"kind": "timm", "model": "hf-hub:a/b@c", "revision": "main"}, "names its revision"),
        ({"kind": "onnx", "model": "a.onnx"}, "need 'image_size'"),
        ({"kind": "onnx", "model": "folder", "image_size": 32}, "must be a .onnx file"),
        ({"kind": "onnx", "model": "a.onnx", "precision": "float16"}, "have no 'precision'"),
        ({"kind": "onnx", "model": "a.onnx", "graph": {"std": [1, 0, 1]}}, "divides by zero"),
        (
            {"kind": "onnx", "model": "a.onnx", "graph": {"dtype": "uint8", "mean": [0, 0, 0]}},
            "remove mean and std",
        ),
    ],
)
def test_impossible_settings_are_refused(settings, problem):
    with pytest.raises(ValidationError, match=problem):
        EmbedderSettings(**settings)


def test_settings_and_resolution_do_not_import_torch():
    code = (
        "import sys; from shared.embedders.embedder import *\n"
        "resolve(EmbedderSettings(kind='timm', model='resnet18'))\n"
        "assert not {'torch', 'timm', 'skimage', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("instructions", "gpu", "expected"),
    [
        ({"avx2"}, False, ("cpu", "float32")),
        ({"avx2", "avx512_bf16"}, False, ("cpu", "bfloat16")),
        ({"amx_bf16"}, False, ("cpu", "bfloat16")),
        ({"amx_bf16"}, True, ("cuda", "float16")),
    ],
)
def test_auto_precision_and_device_follow_the_machine(monkeypatch, instructions, gpu, expected):
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    asked = EmbedderSettings(kind="timm", model="vit_tiny_patch16_224", pretrained=False)
    resolved = resolve_device(asked)
    assert (resolved.device, resolved.precision) == expected
    assert resolve_device(resolved) == resolved
    # The driver decides neither, so that its own processor is no part of an address.
    assert resolve(asked) == asked
    assert identity(asked)["precision"] == "auto"


def test_vectors_are_those_of_plain_timm(timm_folder):
    import timm
    import torch
    from timm.data import create_transform, resolve_model_data_config

    settings = settings_for_folder(timm_folder).model_copy(update={"precision": "float32"})
    embedder = load(settings, 1)
    images = [picture(1), picture(2, 90, 300), picture(3, 64, 64)]
    found = embedder.embed([embedder.prepare(image) for image in images])

    model = timm.create_model(f"local-dir:{timm_folder}", pretrained=True, num_classes=0).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.inference_mode():
        expected = model(torch.stack([transform(image) for image in images]))
    expected = torch.nn.functional.normalize(expected, dim=1).numpy()
    assert found.dtype == np.float32
    assert found.shape == (3, embedder.dim) == (3, 32)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert embedder.input_side == 71  # floor(64 / 0.9)
    assert embedder.reduce_to == 142


def test_vectors_are_those_of_plain_open_clip(open_clip_folder):
    import open_clip
    import torch

    settings = settings_for_folder(open_clip_folder).model_copy(update={"precision": "float32"})
    assert settings.kind == "open_clip"
    embedder = load(settings, 1)
    images = [picture(1), picture(2, 90, 300)]
    found = embedder.embed([embedder.prepare(image) for image in images])

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{open_clip_folder}")
    with torch.inference_mode():
        batch = torch.stack([transform(image) for image in images])
        expected = model.eval().encode_image(batch, normalize=True).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert embedder.dim == 24


def test_random_weights_come_from_the_seed_and_leave_the_global_generator_alone():
    import torch

    def vector(seed: int, **settings) -> np.ndarray:
        embedder = load(random_timm(seed=seed, **settings), 1)
        return embedder.embed([embedder.prepare(picture(1))])[0]

    before = torch.random.get_rng_state()
    first = vector(0)
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_array_equal(first, vector(0))
    assert not np.allclose(first, vector(1))
    assert float(first @ vector(0, precision="bfloat16")) > 0.99


def test_a_network_without_a_size_option_takes_the_size_from_the_transform():
    embedder = load(random_timm(model="mobilenetv3_small_050", image_size=96), 1)
    prepared = embedder.prepare(picture(1))
    assert prepared.shape == (96, 96, 3)
    assert embedder.embed([prepared]).shape == (1, embedder.dim)


def test_a_zero_vector_stays_zero_and_a_non_finite_one_non_finite():
    import torch

    embedder = load(random_timm(), 1)
    features = torch.tensor([[0.0, 0.0], [float("nan"), 1.0], [3.0, 4.0]])
    embedder.forward._encode = lambda images: features[torch.arange(len(images)).clamp(max=2)]
    vectors = embedder.embed([embedder.prepare(picture(seed)) for seed in range(3)])
    assert (vectors[0] == 0).all()
    assert not np.isfinite(vectors[1]).all()
    np.testing.assert_allclose(vectors[2], [0.6, 0.8], rtol=1e-6)


def test_an_extreme_aspect_ratio_costs_no_memory():
    embedder = load(random_timm(), 1)
    long = Image.new("RGB", (60_000, 3), "red")
    started = time.perf_counter()
    prepared = embedder.prepare(long)  # untrimmed, 71 x 1,420,000 pixels
    assert prepared.shape == (64, 64, 3)
    assert time.perf_counter() - started < 0.5


def test_identity_holds_no_path_and_follows_the_weights(timm_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(timm_folder, moved)
    here, there = (identity(settings_for_folder(folder)) for folder in (timm_folder, moved))
    assert here == there
    assert str(tmp_path) not in json.dumps(there)
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert identity(settings_for_folder(moved)) != here


def test_identity_changes_with_what_changes_vectors_only():
    settings = random_timm()
    assert identity(settings) != identity(settings.model_copy(update={"seed": 1}))
    assert identity(settings) != identity(settings.model_copy(update={"decode": "full"}))
    thresholds = {"dedup": 0.5}
    declared = EmbedderSettings(kind="descriptor", thresholds=thresholds)
    assert identity(EmbedderSettings(kind="descriptor")) == identity(declared)


@pytest.mark.parametrize(
    "changes", [{"batch_size": 4}, {"device": "auto"}, {"thresholds": {"dedup": 0.5}}]
)
def test_identity_does_not_change_with_where_and_how_fast_vectors_are_made(changes):
    assert identity(random_timm(**changes)) == identity(random_timm())


def test_what_vectors_were_made_on_is_told_apart_from_what_decides_them():
    import torch

    used = runtime(random_timm(precision="auto"), 3)
    assert used["device"] == "cpu"
    assert used["threads"] == 3
    assert used["precision"] in ("float32", "bfloat16")
    assert used["libraries"]["torch"] == torch.__version__
    json.dumps(used)
    assert set(runtime(EmbedderSettings(kind="descriptor"), 1)["libraries"]) == {
        *("numpy", "PIL", "skimage")
    }


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_a_vector_does_not_depend_on_its_batch(model, precision):
    embedder = load(random_timm(model=model, precision=precision), 1)
    prepared = [embedder.prepare(picture(seed)) for seed in range(32)]
    whole = embedder.embed(prepared).astype(np.float16)
    for size in (1, 3, 16):
        pieces = [embedder.embed(prepared[at : at + size]) for at in range(0, 32, size)]
        np.testing.assert_array_equal(np.concatenate(pieces).astype(np.float16), whole)
    np.testing.assert_array_equal(embedder.embed(prepared[::-1])[::-1].astype(np.float16), whole)


@pytest.mark.parametrize("room", [1, 5, 20])
def test_a_batch_shrinks_until_the_gpu_has_room_and_goes_on(room):
    import torch

    forward = load_forward(random_timm(), 1)
    encode, lengths = forward._encode, []

    def encode_few(images):
        lengths.append(len(images))
        if len(images) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")
        return encode(images)

    prepared = [np.asarray(picture(seed, 64, 64)) for seed in range(33)]
    expected = forward.embed(prepared)
    forward._encode = encode_few
    np.testing.assert_allclose(forward.embed(prepared), expected, atol=1e-6)
    assert max(lengths) == 33
    lengths.clear()
    np.testing.assert_allclose(forward.embed(prepared), expected, atol=1e-6)
    assert max(lengths) <= room  # later batches begin with what there was room for


def test_a_gpu_without_room_for_one_image_is_one_line():
    import torch

    forward = load_forward(random_timm(), 1)

    def encode_none(images):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried\nto allocate")

    forward._encode = encode_none
    with pytest.raises(LvdError, match="no room for one image of 64 x 64 px") as raised:
        forward.embed([np.zeros((64, 64, 3), np.uint8)] * 20)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("image_size", [None, 128])
@pytest.mark.parametrize(
    "name",
    [
        *("vit_small_patch14_dinov2.lvd142m", "resnet50.a1_in1k", "mobilenetv3_small_050"),
        *("vit_base_patch16_clip_224.openai", "convnext_tiny", "swin_tiny_patch4_window7_224"),
    ],
)
def test_preparation_is_that_of_the_built_model_and_loads_no_weights(name, image_size):
    import timm
    import torch
    from timm.data import create_transform, resolve_data_config

    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    size = {"input_size": (3, image_size, image_size)} if image_size else {}
    expected = create_transform(**resolve_data_config(size, model=model), is_training=False)
    settings = EmbedderSettings(kind="timm", model=name, image_size=image_size)
    found = load_preparation(settings)  # where no hub can be reached
    for seed in range(2):
        image = picture(seed, 300, 200)
        pixels = torch.tensor(found.prepare(image)).permute(2, 0, 1)
        torch.testing.assert_close(found.normalised(pixels[None])[0], expected(image))


def test_preparation_needs_the_config_of_a_folder_only(timm_folder, open_clip_folder, tmp_path):
    configs = ("config.json", "open_clip_config.json")
    kinds = ("timm", "open_clip")
    for kind, config, folder in zip(kinds, configs, (timm_folder, open_clip_folder), strict=True):
        alone = tmp_path / kind
        alone.mkdir()
        shutil.copy(folder / config, alone)
        settings = EmbedderSettings(kind=kind, model=f"local-dir:{alone}", decode="full")
        preparation = load_preparation(settings)
        assert preparation.reduce_to is None
        whole = load(settings_for_folder(folder), 1)
        assert whole.input_side == preparation.input_side
        np.testing.assert_array_equal(preparation.prepare(picture(1)), whole.prepare(picture(1)))
        with pytest.raises(LvdError):
            load_forward(settings, 1)


def test_only_safetensors_are_read_from_a_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(LvdError, match=r"model\.safetensors"):
        settings_for_folder(tmp_path)
    with pytest.raises(LvdError, match=r"there is no model\.safetensors"):
        load(EmbedderSettings(kind="timm", model=f"local-dir:{tmp_path}"), 1)
    with pytest.raises(LvdError, match="no model folder"):
        settings_for_folder(tmp_path / "nowhere")


def test_weights_that_lack_a_layer_are_refused(timm_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(timm_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    # With a classifier to drop, timm loads what fits, silently.
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 10
    config["pretrained_cfg"]["classifier"] = "head"
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = load_file(tmp_path / "model.safetensors")
    del state["blocks.1.attn.qkv.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(LvdError, match=r"has no weights for 'blocks\.1\.attn\.qkv\.weight'"):
        load(settings_for_folder(tmp_path), 1)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"kind": "timm", "model": "vit_smal_patch14_dinov2"}, "'vit_small_patch14_dinov2'"),
        ({"kind": "timm", "model": "vit_small_patch14_dinov2.lvd142"}, "'lvd142m'"),
        ({"kind": "open_clip", "model": "ViT-B-33", "pretrained": "openai"}, "'ViT-B-32'"),
        ({"kind": "open_clip", "model": "ViT-B-32", "pretrained": "openia"}, "'openai'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(settings, hint):
    with pytest.raises(LvdError, match=f"did you mean {hint}"):
        load(EmbedderSettings(**settings), 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "timm", "model": "vit_small_patch14_dinov2.lvd142m"},
        {"kind": "timm", "model": "hf-hub:someone/something"},
        {"kind": "open_clip", "model": "ViT-B-32", "pretrained": "openai"},
    ],
)
@pytest.mark.parametrize("offline", [False, True])
def test_a_hub_out_of_reach_is_one_line_within_seconds(monkeypatch, tmp_path, settings, offline):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    import open_clip  # noqa: F401  (imports are not what is timed)
    import timm  # noqa: F401

    started = time.perf_counter()
    with pytest.raises(LvdError) as raised:
        load(EmbedderSettings(**settings), 1)
    assert time.perf_counter() - started < 5
    message = str(raised.value)
    assert "\n" not in message
    ways_out = ("HF_HOME", "--embedder FOLDER", "--set retrieve.embedder=bundled`")
    for part in (settings["model"], *ways_out):
        assert part in message


OLD, NEW = "a" * 40, "b" * 40


def cached(cache, repository: str, commit: str, files) -> None:
    """Write files as the hub's cache holds them, and make `commit` the newest that it knows."""
    folder = cache / ("models--" + repository.replace("/", "--"))
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, folder / "snapshots" / commit)


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_hub_model_is_its_cached_commit_without_a_network(empty_cache, timm_folder):
    settings = EmbedderSettings(kind="timm", model="hf-hub:some/thing")
    cached(empty_cache, "some/thing", OLD, timm_folder.iterdir())
    before, pinned = identity(settings), resolve_identity(settings)
    assert before["revision"] == pinned.revision == OLD
    cached(empty_cache, "some/thing", NEW, timm_folder.iterdir())
    assert identity(settings)["revision"] == NEW
    assert identity(pinned) == before
    at = settings.model_copy(update={"model": f"hf-hub:some/thing@{OLD}"})
    assert identity(at) == before
    # What is pinned is what is loaded, though the cache holds a newer one.
    newer = empty_cache / "models--some--thing" / "snapshots" / NEW / "model.safetensors"
    newer.write_bytes(b"no weights")
    assert load(pinned, 1).dim == 32
    with pytest.raises(LvdError):
        load(settings, 1)


@pytest.mark.parametrize(
    ("settings", "repository", "name"),
    [
        (
            {"kind": "timm", "model": "vit_small_patch14_dinov2.lvd142m"},
            "timm/vit_small_patch14_dinov2.lvd142m",
            "model.safetensors",
        ),
        (
            {"kind": "open_clip", "model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"},
            "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
            "open_clip_model.safetensors",
        ),
    ],
)
def test_a_model_that_a_library_knows_is_the_commit_of_its_repository(
    empty_cache, tmp_path, settings, repository, name
):
    (tmp_path / name).write_bytes(b"")
    cached(empty_cache, repository, OLD, [tmp_path / name])
    assert identity(EmbedderSettings(**settings))["revision"] == OLD


def test_a_commit_that_nobody_can_tell_is_one_line(empty_cache):
    with pytest.raises(LvdError, match=r"hf-hub:some/thing .*not reachable.*HF_HOME"):
        identity(EmbedderSettings(kind="timm", model="hf-hub:some/thing"))


def test_the_descriptor_tells_copies_from_other_pictures():
    embedder = load(EmbedderSettings(kind="descriptor"), 1)
    originals = [picture(seed) for seed in range(4)]
    copies = [
        originals[0].resize((100, 75)),
        originals[1].crop((8, 6, 192, 144)),
        originals[2].point(lambda value: value * 0.8),
        originals[3],
    ]
    both = [np.stack([embedder.prepare(image) for image in side]) for side in (originals, copies)]
    first, second = (embedder.embed(list(side)) for side in both)
    assert first.shape == (4, embedder.dim)
    assert first.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-5)
    cosines = first @ second.T
    assert cosines.diagonal().min() > 0.8
    assert cosines[~np.eye(4, dtype=bool)].max() < 0.6


def test_descriptor_vectors_do_not_depend_on_the_batch():
    embedder = load(EmbedderSettings(kind="descriptor", decode="full"), 1)
    assert embedder.reduce_to is None
    batch = [embedder.prepare(picture(seed)) for seed in range(3)]
    batch.append(embedder.prepare(Image.new("RGB", (1, 1))))
    together = embedder.embed(batch)
    assert np.isfinite(together).all()
    np.testing.assert_array_equal(
        together, np.concatenate([embedder.embed([one]) for one in batch])
    )


def test_weights_that_are_those_of_a_common_seed_are_taken_for_weights(tmp_path):
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **arguments)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    about = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": arguments}
    (tmp_path / "config.json").write_text(
        json.dumps({**about, "pretrained_cfg": {"input_size": [3, 32, 32]}})
    )
    assert load(settings_for_folder(tmp_path), threads=1).dim == 24
