import io
import json
import re
import tarfile
from html.parser import HTMLParser

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from small_run import draw, write_shards

from shared.commands import called
from shared.errors import LvdError
from shared.pages.sheets import LINE
from train.model.backbone import build_backbone
from train.model.model_folder import write_model_folder
from train.model.settings import ModelSettings
from train.visualise.command import visualise
from train.visualise.output import check_replaceable, write_figures
from train.visualise.overlays import central_square, cut_out, heat
from train.visualise.patch_colours import patch_colours

OPTIONS = {"embed_dim": 24, "depth": 2, "num_heads": 3, "reg_tokens": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    settings = ModelSettings(name="vit_tiny_patch16_224", patch_size=8, options=OPTIONS)
    torch.manual_seed(1)
    network = build_backbone(settings, image_size=32, masked=False)
    write_model_folder(network.state_dict(), settings, 32, folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        (folder / f"p{number}.jpg").write_bytes(draw(number))
    return folder


@pytest.fixture
def call(tmp_path):
    def run(model, images, *more, out="out"):
        arguments = ["--model", model, "--images", images, "--out", tmp_path / out]
        arguments += ["--cache", tmp_path / "cache", *more]
        result = CliRunner().invoke(visualise, list(map(str, arguments)))
        if isinstance(result.exception, LvdError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return tmp_path / out, result.output

    return run


class Page(HTMLParser):
    """The sources, references and words of a page."""

    def __init__(self, file):
        super().__init__()
        self.sources, self.tags, self.words = [], set(), ""
        self.feed(file.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_data(self, data):
        self.words += data


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_page_holds_all_its_pictures_and_says_what_they_are_of(model, pictures, call):
    out, said = call(model, pictures, "--size", 48, "--neighbours", pictures)
    assert names(out) == [
        *(f"attention-0{number}.png" for number in range(1, 5)),
        *("index.html", "neighbours.png", "overview-01.png", "patches.png", "visualise.json"),
    ]
    assert said.strip().endswith(str(out / "index.html"))
    page = Page(out / "index.html")
    # At a glance 4; a picture, a mean and 3 heads of each; the patches; 4 queries, 4 neighbours each.
    assert len(page.sources) == 4 + 4 * 5 + 4 + 4 * 5
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert not page.tags & {"script", "link", "a", "iframe"}
    assert "http" not in page.words
    for fact in (str(model), "48 px", "8 px", "6 × 6", "p3.jpg"):
        assert fact in page.words
    assert f"{called('lvd-train')} visualise --model {model} --images {pictures}" in page.words
    assert "60%" in page.words
    cells = re.findall(r"<td[^>]*>(.*?)</td>", (out / "index.html").read_text())
    assert cells == [str(model), "48 px", "6 × 6 of 8 px", "3", "2", "token"]
    assert "2304.07193" in page.words


def test_the_same_call_gives_the_same_bytes(model, pictures, call):
    one, _ = call(model, pictures, "--neighbours", pictures, out="one")
    other, _ = call(model, pictures, "--neighbours", pictures, out="other")
    assert names(one) == names(other)
    for name in names(one):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_every_sheet_is_a_png_that_fits_on_a_screen(model, pictures, call):
    out, _ = call(model, pictures)
    for path in out.glob("*.png"):
        image = Image.open(path)
        image.load()
        assert image.format == "PNG"
        assert not image.info  # no date, no software
        assert image.width <= 1400
        if path.name.startswith("attention"):
            assert image.height <= 800


def test_the_nearest_neighbour_of_a_picture_is_itself_in_shards_too(model, tmp_path, call):
    shards = write_shards(tmp_path / "shards")
    out, _ = call(
        model, shards, "--neighbours", shards, "--set", "pictures=3", "--set", "nearest=2"
    )
    words = re.sub(r"<[^>]*>", "|", (out / "index.html").read_text().partition("Nearest")[2])
    rows = words.split("query")[1:]
    keys = json.loads((out / "visualise.json").read_text())["pictures"]
    assert keys == ["00000/000000000", "00000/000000003", "00000/000000006"]
    for key, row in zip(keys, rows, strict=True):
        assert [word for word in row.split("|") if word.strip()][:3] == [key, "1.000", key]


def test_bad_images_are_named_and_skipped_and_more_pictures_are_said(model, pictures, call):
    (pictures / "p1.jpg").write_bytes(draw(1)[:700])
    (pictures / "p0.png").write_bytes(b"not a picture")
    out, said = call(model, pictures, "--set", "pictures=2")
    words = Page(out / "index.html").words
    assert "2 images cannot be decoded and are left out (the first is p0.png" in said
    assert "p0.png: not an image" in words
    assert "p1.jpg: truncated" in words
    assert "The first 2 pictures" in words
    assert json.loads((out / "visualise.json").read_text())["pictures"] == ["p0.jpg", "p2.jpg"]
    (pictures / "p2.jpg").unlink()
    (pictures / "p3.jpg").unlink()
    (pictures / "p0.jpg").unlink()
    with pytest.raises(LvdError, match=r"--images: no image .* can be decoded"):
        call(model, pictures)


def test_figures_are_replaced_whole_and_nothing_else_ever_is(model, pictures, tmp_path, call):
    out, _ = call(model, pictures)
    call(model, pictures, "--set", "pictures=1")
    (out / "picture.png").write_bytes(b"that of the demo")
    call(model, pictures, "--set", "pictures=1")
    figures = ["attention-01.png", "index.html", "overview-01.png", "patches.png"]
    assert names(out) == [*figures, "visualise.json"]
    assert names(tmp_path) == ["out", "pictures"]
    (out / "mine.txt").write_text("dear")
    with pytest.raises(LvdError, match=r"holds mine\.txt") as refused:
        call(model, pictures)
    assert "\n" not in str(refused.value)
    (pictures / "visualise.json").write_text("{}")
    for path in (pictures, out / "mine.txt"):
        with pytest.raises(LvdError, match="--out"):
            check_replaceable(path)


def test_figures_survive_a_kill_between_the_two_renames(tmp_path):
    out = tmp_path / "out"
    write_figures(out, {"a.png": b"old"}, {})
    out.rename(tmp_path / ".out.before")
    (tmp_path / ".out.new").mkdir()
    write_figures(out, {"b.png": b"new"}, {"model": "m"})
    assert names(tmp_path) == ["out"]
    assert names(out) == ["b.png", "visualise.json"]
    assert json.loads((out / "visualise.json").read_text()) == {"files": ["b.png"], "model": "m"}


def test_what_a_model_does_not_have_is_left_out_and_said(tmp_path, pictures, call):
    folder = tmp_path / "resnet"
    folder.mkdir()
    network = timm.create_model("test_resnet", num_classes=0)
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "test_resnet",
        "num_classes": 0,
        "pretrained_cfg": network.pretrained_cfg,
    }
    (folder / "config.json").write_text(json.dumps(config))
    out, said = call(folder, pictures)
    assert names(out) == ["index.html", "overview-01.png", "patches.png", "visualise.json"]
    assert "has no attention maps" in said
    words = Page(out / "index.html").words
    assert "has no attention maps" in words
    assert "What the CLS token looks at" not in words
    with pytest.raises(LvdError, match="neither attention nor patch tokens"):
        call("pixels", pictures)
    out, _ = call("pixels", pictures, "--neighbours", pictures)
    assert names(out) == ["index.html", "neighbours.png", "visualise.json"]


def test_joined_models_share_figures_and_neighbours(model, pictures, call):
    one, _ = call(model, pictures, "--set", "pictures=1", out="one")
    out, _ = call(f"{model}+{model}", pictures, "--neighbours", pictures, "--set", "pictures=1")
    assert names(out) == [
        *("attention-01.png", "attention-02.png", "index.html", "neighbours.png"),
        *("overview-01.png", "patches.png", "visualise.json"),
    ]
    single, both = (
        re.findall(r'width="(\d+)" height="(\d+)"', (folder / "index.html").read_text())[0]
        for folder in (one, out)
    )
    assert int(both[0]) == 2 * int(single[0]) + 4
    assert int(both[1]) == int(single[1]) + LINE  # the models' names


def test_a_size_that_patches_do_not_divide_is_an_error(model, pictures, call):
    with pytest.raises(LvdError, match="multiple"):
        call(model, pictures, "--size", 36)
    with pytest.raises(LvdError, match=r"picturs .*pictures"):
        call(model, pictures, "--set", "picturs=3")


def test_names_from_outside_are_escaped(model, tmp_path, call):
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "a.tar", "w") as tar:
        info = tarfile.TarInfo("<script>alert(1)<\u202e&\x1b[2J.jpg")
        info.size = len(draw(0))
        tar.addfile(info, io.BytesIO(draw(0)))
    out, said = call(model, shards, "--neighbours", shards)
    page = (out / "index.html").read_text()
    assert not {"\u202e", "\x1b"} & set(page + said)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def blobs(sign=1.0):
    """Patch tokens of three pictures: a two-sided object in the middle of a noisy background."""
    generator = np.random.default_rng(0)
    tokens = generator.normal(0, 0.02, (3, 8, 8, 16))
    tokens[..., 0] -= 1
    inside = np.zeros((3, 8, 8), bool)
    for picture, (top, left) in enumerate(((1, 1), (2, 3), (3, 2))):
        inside[picture, top : top + 4, left : left + 4] = True
        tokens[picture, top : top + 4, left : left + 4, 0] += 2
        tokens[picture, top : top + 4, left : left + 2, 1] += 0.8
    return (sign * tokens).astype(np.float32), inside


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_object_is_the_foreground_whatever_the_sign_of_the_component(sign):
    tokens, inside = blobs(sign)
    found = patch_colours(tokens)
    assert np.array_equal(found.foreground, inside)
    assert (found.colours[~inside] == 0).all()
    assert found.first[inside].min() > 0 > found.first[~inside].max()


def test_like_patches_have_like_colours_in_all_pictures():
    tokens, inside = blobs()
    colours = patch_colours(tokens).colours.astype(int)
    left = np.stack([colours[p][inside[p]].reshape(4, 4, 3)[:, :2] for p in range(3)])[..., 0]
    right = np.stack([colours[p][inside[p]].reshape(4, 4, 3)[:, 2:] for p in range(3)])[..., 0]
    assert abs(left.mean() - right.mean()) > 150
    assert max(left.std(), right.std()) < 30


def test_pictures_without_any_contrast_are_all_background():
    found = patch_colours(np.ones((2, 4, 4, 8), np.float32))
    assert not found.foreground.any()
    assert not found.colours.any()
    assert np.isfinite(found.first).all()


def test_overlays_lie_where_the_patches_are():
    picture = Image.new("RGB", (180, 180), (200, 100, 0))
    kept = np.zeros((3, 3), bool)
    kept[0, 2] = True
    shown = np.asarray(cut_out(picture, kept))
    assert (shown[:60, 120:] == (200, 100, 0)).all()
    assert max(shown[60:].max(), shown[:, :120].max()) < 60
    warm = np.asarray(heat(picture, kept.astype(np.float32))).astype(int).sum(axis=2)
    assert np.unravel_index(warm.argmax(), warm.shape)[0] < 60
    assert warm[30, 150] > 2 * warm[150, 30]


def test_the_central_square_keeps_the_aspect():
    image = Image.new("RGB", (300, 100))
    image.paste((255, 0, 0), (100, 0, 200, 100))
    assert (np.asarray(central_square(image, 40)) == (255, 0, 0)).all()
