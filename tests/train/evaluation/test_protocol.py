from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from train.evaluation import protocol
from train.evaluation.features import bank
from train.frozen.loading import load_models


def part(size, side, pooling="token"):
    return SimpleNamespace(
        needs=SimpleNamespace(size=size, pooling=pooling),
        transform=SimpleNamespace(input_side=side),
    )


def test_notes_of_classification_name_what_differs_and_nothing_else():
    assert protocol.classification("knn", [part(224, 248)], 256) == []
    (fitted,) = protocol.classification("logreg", [part(224, 224)], None)
    assert fitted.startswith("features are standardised")
    side, _ = protocol.classification("logreg", [part(224, 256)], None)
    assert side.endswith("--size 224 --set resize=224")
    (seen,) = protocol.classification("knn", [part(224, 224), part(224, 256)], None)
    assert seen.startswith("the middle 224 px of 224 px are seen, where DINOv2 sees 224 of 256")
    (pooled,) = protocol.classification("knn", [part(224, 256, "avg")], None)
    assert pooled == "pooled by avg, where DINOv2 takes the CLS token"
    assert len(protocol.classification("linear", [part(224, 256, "avg")], None)) == 3


def test_notes_of_dense_tasks_name_what_differs():
    (scales,) = protocol.segmentation([512], 512, 341)
    assert "random scales" in scales
    windows, _ = protocol.segmentation([518], 512, 341)
    assert windows.startswith("windows of 512 px every 341 px are resized to 518 px")
    squares, _ = protocol.segmentation([518, 224], None, 341)
    assert squares.startswith("each image is squeezed to a square of 224 and 518 px")
    assert len(protocol.depth([224], cls=True)) + 1 == len(protocol.depth([224], cls=False))
    whole, cut = protocol.retrieval([part(224, 256)], boxes=True)
    assert "the middle 224 px of 256 px" in whole
    assert cut.endswith("--set retrieval.crop_queries=false")
    assert protocol.retrieval([part(224, 256)], boxes=False) == [whole]
    size, _ = protocol.attention([480, 224])
    assert size.startswith("each image is squeezed to a square of 224 and 480 px")
    everything = [
        *protocol.retrieval([part(224, 256)], boxes=True),
        *protocol.attention([480]),
        *protocol.classification("linear", [part(32, 40)], None),
        *protocol.segmentation([518], None, 341),
        *protocol.depth([224], cls=False),
    ]
    assert not any("; " in sentence or sentence.endswith(".") for sentence in everything)


def test_images_are_resized_and_cut_as_torchvision_does(tmp_path):
    generator = np.random.default_rng(0)
    expected = []
    reference = transforms.Compose(
        [
            transforms.Resize(40, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    for n, size in enumerate([(80, 50), (44, 60)]):
        coarse = generator.integers(0, 256, (6, 6, 3), np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)
        (tmp_path / "data" / str(n)).mkdir(parents=True)
        picture.save(tmp_path / "data" / str(n) / "a.png")
        expected.append(reference(picture).flatten())
    (pixels,) = load_models(["pixels"], device="cpu")
    about = {"role": "--train", "cache": tmp_path / "cache", "batch_size": 4, "workers": 1}
    seen = bank(pixels, str(tmp_path / "data"), resize=40, **about)
    rows = [int(key.partition("/")[0]) for key in seen.keys]
    wanted = torch.stack([expected[row] for row in rows])
    torch.testing.assert_close(seen.pooled.float(), wanted, atol=2e-3, rtol=0)
    whole = bank(pixels, str(tmp_path / "data"), **about)  # of its own, beside the other's
    assert not torch.equal(whole.pooled, seen.pooled)
