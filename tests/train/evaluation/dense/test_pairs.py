import io

import numpy as np
import pytest
from PIL import Image

from shared.errors import LvdError
from shared.pictures.images import ImageError
from train.evaluation.dense.pairs import find_pairs, read_depth, read_mask


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".txt"):
            continue
        Image.new("RGB" if name.endswith("jpg") else "L", (4, 3)).save(root / name)


def keys(root, kind, role="--test"):
    return [pair.key for pair in find_pairs(str(root), kind, role)]


def test_ade20k_is_found_and_split_by_role(tmp_path):
    names = ["training/b", "training/a", "validation/c"]
    write(tmp_path, *[f"images/{name}.jpg" for name in names])
    write(tmp_path, *[f"annotations/{name}.png" for name in names])
    (first, second) = find_pairs(str(tmp_path), "mask", "--train")
    assert (first.key, second.key) == ("training/a.jpg", "training/b.jpg")
    assert first.image == tmp_path / "images/training/a.jpg"
    assert first.target == tmp_path / "annotations/training/a.png"
    assert first.ignored == 0
    assert keys(tmp_path, "mask") == keys(tmp_path, "mask", "--data") == ["validation/c.jpg"]
    assert keys(tmp_path / "images/validation", "mask", "--train") == ["validation/c.jpg"]


def test_voc_is_found_and_split_by_its_lists(tmp_path, capsys):
    write(tmp_path, *[f"JPEGImages/{name}.jpg" for name in "abcd"])
    write(tmp_path, *[f"SegmentationClass/{name}.png" for name in "abc"])
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\na\n")
    (lists / "val.txt").write_text("c\n")
    assert keys(tmp_path, "mask", "--train") == ["a.jpg", "b.jpg"]
    assert keys(tmp_path, "mask") == ["c.jpg"]
    assert find_pairs(str(tmp_path), "mask", "--test")[0].ignored == 255
    assert "left out" not in capsys.readouterr().err


def test_plain_folders_are_found_and_an_image_alone_is_counted(tmp_path, capsys):
    write(tmp_path, "images/x/1.jpg", "images/2.png", "images/3.jpg", "images/4.jpg")
    write(tmp_path, "masks/x/1.png", "masks/2.png", "masks/3.jpg", "masks/5.png")
    assert keys(tmp_path, "mask") == ["2.png", "x/1.jpg"]
    assert "2 images have no mask and are left out (as 3.jpg)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("image", "target"),
    [
        ("scene/rgb_001.jpg", "scene/sync_depth_001.png"),
        ("00000_colors.png", "00000_depth.png"),
        ("images/1.jpg", "depth/1.png"),
        ("rgb/test/1.jpg", "depth/test/1.png"),
    ],
)
def test_nyu_layouts_are_found(tmp_path, image, target):
    write(tmp_path, image, target)
    (pair,) = find_pairs(str(tmp_path), "depth", "--test")
    assert (pair.image, pair.target) == (tmp_path / image, tmp_path / target)


@pytest.mark.parametrize("kind", ["mask", "depth"])
def test_another_layout_is_an_error_that_names_those_that_are_known(tmp_path, kind):
    known = "SegmentationClass" if kind == "mask" else "sync_depth"
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(LvdError, match=known) as error:
            find_pairs(str(path), kind, "--train")
        assert "\n" not in str(error.value)
    write(tmp_path, "images/a.jpg", "masks/b.png", "depth/b.png")
    with pytest.raises(LvdError, match=f"no image in .* has a {kind} of its name"):
        find_pairs(str(tmp_path), kind, "--train")


def test_masks_are_read_as_they_are_stored(tmp_path):
    labels = np.array([[0, 1, 2], [3, 200, 255]], np.uint8)
    palette = Image.fromarray(labels, "P")
    palette.putpalette([7] * 768)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(labels).save(tmp_path / "grey.png")
    Image.fromarray(labels.astype(np.uint16) * 256).save(tmp_path / "wide.png")
    Image.fromarray(labels > 1).save(tmp_path / "binary.png")
    np.save(tmp_path / "array.npy", labels.astype(np.int64) - 1)
    for name in ("palette", "grey"):
        found = read_mask(tmp_path / f"{name}.png")
        assert found.dtype == np.int32
        assert found.tolist() == labels.tolist()
    assert read_mask(tmp_path / "wide.png").tolist() == (labels.astype(int) * 256).tolist()
    assert read_mask(tmp_path / "binary.png").tolist() == (labels > 1).tolist()
    assert read_mask(tmp_path / "array.npy").tolist() == (labels.astype(int) - 1).tolist()


def test_depths_are_metres_and_0_where_they_are_unknown(tmp_path):
    Image.fromarray(np.array([[0, 1500], [65535, 1]], np.uint16)).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", np.array([[np.nan, 1.5], [-1, np.inf]]))
    assert read_depth(tmp_path / "a.png").dtype == np.float32
    assert read_depth(tmp_path / "a.png") == pytest.approx(np.array([[0, 1.5], [65.535, 0.001]]))
    assert read_depth(tmp_path / "b.npy").tolist() == [[0, 1.5], [0, 0]]
    Image.new("L", (4, 4)).save(tmp_path / "c.png")
    with pytest.raises(ImageError, match="not 8 bits"):
        read_depth(tmp_path / "c.png")


def hostile():
    stream = io.BytesIO()
    Image.new("L", (50, 50)).save(stream, "PNG")
    whole = stream.getvalue()
    yield "truncated.png", whole[:60]
    yield "empty.png", b""
    yield "page.png", b"<html>"
    yield "bomb.png", whole[:16] + b"\0\1\0\0\0\1\0\0" + whole[24:]
    stream = io.BytesIO()
    Image.new("RGB", (5, 5), "red").save(stream, "PNG")
    yield "colour.png", stream.getvalue()
    stream = io.BytesIO()
    np.save(stream, np.array([[print]], dtype=object), allow_pickle=True)
    yield "pickle.npy", stream.getvalue()
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, 2)))
    yield "lie.npy", stream.getvalue().replace(b"(2, 2)", b"(2222222, 2222222)")
    stream = io.BytesIO()
    np.savez(stream, np.zeros((2, 2)))
    yield "archive.npy", stream.getvalue()


@pytest.mark.parametrize(("name", "data"), list(hostile()), ids=lambda value: str(value)[:12])
def test_hostile_targets_are_broken_and_nothing_else(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    for read in (read_mask, read_depth):
        with pytest.raises(ImageError):
            read(tmp_path / name)
