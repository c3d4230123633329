"""Heads, prompts and labels: what score they make of vectors, and what is refused of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_folders import make_open_clip_folder, make_timm_folder
from pydantic import ValidationError
from safetensors.numpy import save_file

from curate.filters.classifier import ClassifierSettings
from curate.filters.head import Head, HeadSettings
from curate.filters.prompts import PromptSettings
from curate.filters.scores import FilterSettings
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError

RNG = np.random.default_rng(0)
DESCRIPTOR = EmbedderSettings(kind="descriptor")


def by_hand(vector, weight, bias, wanted):
    """Return the score of a stored vector, number by number in Python's floats."""
    vector = [float(value) for value in vector]
    length = sum(value * value for value in vector) ** 0.5
    outputs = [
        sum(w * x / length for w, x in zip(row, vector, strict=True)) + float(b)
        for row, b in zip(weight.tolist(), bias, strict=True)
    ]
    if len(outputs) == 1:
        return outputs[0]
    odds = [2.718281828459045 ** (output - max(outputs)) for output in outputs]
    return sum(odds[place] for place in wanted) / sum(odds)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_head_scores_as_the_formula_says(outputs, dim, seed):
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(0, 20, (outputs, dim)), rng.normal(size=outputs)
    wanted = np.unique(rng.integers(0, outputs, 2))
    vectors = rng.normal(size=(7, dim)).astype(np.float16)
    vectors[(vectors == 0).all(1)] = 1
    found = Head(weight, bias, wanted).score(vectors)
    expected = [by_hand(vector, weight, bias, wanted) for vector in vectors]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (3, 6)])
def test_a_file_gives_the_head_that_it_holds(tmp_path, shape):
    weight = RNG.normal(size=shape).astype(np.float32)
    bias = RNG.normal(size=shape[:-1]).astype(np.float32)
    classes = [2, 0] if shape == (3, 6) else None
    np.savez(tmp_path / "head.npz", weight=weight, bias=bias)
    save_file({"fc.weight": weight, "fc.bias": bias}, tmp_path / "head.safetensors")
    vectors = RNG.normal(size=(5, 6)).astype(np.float16)
    expected = [by_hand(v, np.atleast_2d(weight), np.atleast_1d(bias), [0, 2]) for v in vectors]
    for name in ("head.npz", "head.safetensors"):
        loaded = HeadSettings(file=str(tmp_path / name), classes=classes).load("filters.x")
        np.testing.assert_allclose(loaded.head.score(vectors), expected, rtol=1e-9)
        loaded.head.save(tmp_path / "saved.npz")
        again = Head.load(tmp_path / "saved.npz")
        np.testing.assert_array_equal(again.score(vectors), loaded.head.score(vectors))


WRONG_FILES = {
    "two layers": ({"a.weight": np.ones(3), "b.weight": np.ones(3)}, None, "no linear layer"),
    "another name": ({"w": np.ones(3)}, None, "holds w, not"),
    "a cube": ({"weight": np.ones((2, 2, 2))}, None, "no linear layer"),
    "a bias of another length": ({"weight": np.ones((2, 3)), "bias": np.ones(3)}, [0], "bias [3]"),
    "not finite": ({"weight": np.array([1, np.nan])}, None, "not finite"),
    "classes unsaid": ({"weight": np.ones((2, 3))}, None, "2 outputs: say which"),
    "classes of one": ({"weight": np.ones(3)}, [0], "drop `classes`"),
    "no such class": ({"weight": np.ones((2, 3))}, [2], "no output 2: it has 0 to 1"),
    "a pickle": ({"weight": np.array([None])}, None, "cannot be read"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_file_that_is_no_head_is_one_line(tmp_path, case):
    arrays, classes, said = WRONG_FILES[case]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(LvdError) as error:
        HeadSettings(file=str(tmp_path / "x.npz"), classes=classes).load("filters.beauty")
    assert str(error.value).startswith(f"filters.beauty.head.file: {tmp_path / 'x.npz'}")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_of_another_length_is_one_line(tmp_path):
    with pytest.raises(LvdError, match=r"filters.beauty.head.file: .*none.npz is not there"):
        HeadSettings(file=str(tmp_path / "none.npz")).load("filters.beauty")
    np.savez(tmp_path / "x.npz", weight=np.ones(3))
    loaded = HeadSettings(file=str(tmp_path / "x.npz")).load("filters.beauty")
    with pytest.raises(LvdError, match="3 dimensions, and those of embedder descriptor have"):
        loaded.compile(DESCRIPTOR, 1)


def test_prompts_are_clips_zero_shot_classifier(tmp_path):
    import open_clip
    import torch

    folder = f"local-dir:{make_open_clip_folder(tmp_path, vocabulary=49_408)}"
    settings = PromptSettings(
        **{"for": ["a watermark", "text"], "against": ["a clean photo"]},
        templates=["{}", "a picture of {}."],
    )
    head = settings.compile(EmbedderSettings(kind="open_clip", model=folder, device="cpu"), 1)
    model = open_clip.create_model(folder).eval()
    means = []
    with torch.inference_mode():
        tokenise = open_clip.get_tokenizer(folder)
        for text in ("a watermark", "text", "a clean photo"):
            vectors = model.encode_text(tokenise([text, f"a picture of {text}."])).double()
            mean = (vectors / vectors.norm(dim=1, keepdim=True)).mean(0)
            means.append((mean / mean.norm()).numpy())
        scale = float(model.logit_scale.double().exp())
    images = RNG.normal(size=(6, 24))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    odds = np.exp(scale * images @ np.array(means).T)
    expected = odds[:, :2].sum(1) / odds.sum(1)
    np.testing.assert_allclose(head.score(images), expected, atol=1e-5)
    assert expected.std() > 1e-3


def test_labels_are_found_by_number_and_by_name(tmp_path):
    folder = make_timm_folder(tmp_path, labels=("sfw", "drawing", "nsfw"))
    model = {"kind": "timm", "model": f"local-dir:{folder}", "device": "cpu"}
    classifier = EmbedderSettings(**model, task="classify")
    probabilities = np.array([[0.5, 0.2, 0.3], [0, 0.25, 0.75]])

    def compiled(*labels):
        asked = ClassifierSettings(model="x", labels=list(labels)).load("filters.x")
        return asked.compile(classifier, 1)

    np.testing.assert_allclose(compiled("nsfw", 1).score(probabilities), [0.5, 1])
    np.testing.assert_allclose(compiled(0).score(probabilities), [0.5, 0])
    for wrong, said in [("nfsw", "did you mean 'nsfw'?"), (3, "it has 0 to 2"), (-1, "0 to 2")]:
        with pytest.raises(LvdError, match=said.replace("?", r"\?")):
            compiled(wrong)


def test_a_classifier_gives_the_softmax_of_its_logits(tmp_path):
    import timm
    import torch

    from shared.embedders.embedder import load

    folder = make_timm_folder(tmp_path, labels=("a", "b", "c"))
    classifier = EmbedderSettings(
        kind="timm", model=f"local-dir:{folder}", task="classify", device="cpu", precision="float32"
    )
    loaded = load(classifier, 1)
    image = RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().double()
    mean, std = (torch.tensor(getattr(loaded.preparation, name)) for name in ("mean", "std"))
    pixels = (torch.tensor(image / 255.0) - mean) / std
    with torch.inference_mode():
        expected = network(pixels.permute(2, 0, 1)[None].double()).softmax(1).numpy()
    np.testing.assert_allclose(loaded.embed([image]), expected, atol=1e-5)
    plain = make_timm_folder(tmp_path)
    with pytest.raises(LvdError, match="has no classifier"):
        load(classifier.model_copy(update={"model": f"local-dir:{plain}"}), 1)


HEAD = {"file": "x.npz"}


@pytest.mark.parametrize(
    ("filter_", "said"),
    [
        ({"min": 1}, "one of column, head, prompts and classifier"),
        ({"column": "a", "head": HEAD, "min": 1}, "one of column, head"),
        (
            {"name": "a", "head": HEAD, "classifier": {"model": "m", "labels": [0]}, "min": 1},
            "one of",
        ),
        ({"head": HEAD, "min": 1}, "needs a name"),
        ({"name": "a", "head": HEAD}, "min, max or both"),
        ({"name": "a", "prompts": {"for": ["x"]}, "max": 1}, "against"),
        ({"name": "a", "prompts": {"for": [" "], "against": ["x"]}, "max": 1}, "at least 1"),
        (
            {"name": "a", "prompts": {"for": ["x", "y"], "against": ["z"], "templates": ["a"]}},
            "must hold {} once",
        ),
    ],
)
def test_a_filter_that_says_too_little_or_too_much_is_refused(filter_, said):
    with pytest.raises(ValidationError) as error:
        FilterSettings.model_validate(filter_)
    assert said in str(error.value)
