"""A hook of export: what it changes is written and said, the rest keeps its bytes."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner
from pictures import encoded, picture, write_tar
from PIL import Image

from curate.cli import main
from curate.export.hook import edit, load_hook
from shared.errors import LvdError

HOOKS = """
from PIL import Image, ImageDraw

def mirror_wide(image):
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if image.width > 50 else image

def draw_on_it(image):
    ImageDraw.Draw(image).rectangle((0, 0, 9, 9), fill="red")
    return image

def grey(image):
    return image.convert("L")

def fail(image):
    raise ValueError("no such\\nluck")

def forget(image):
    pass

nothing = 3
"""
MEMBERS = {f"{number}.jpg": encoded(picture(number)) for number in range(4)}
MEMBERS |= {
    "wide.jpg": encoded(picture(5, (64, 40))),
    "wide.png": encoded(picture(6, (64, 40)), "PNG"),
}
CONFIG = """
pipelines:
  default:
    embedder: descriptor
    calibrate: {originals: 8, crawl_sample: 8}
    dedup: {threshold: 0.9999}
    retrieve: {threshold: -1}
    report: {pictures: false}
"""


@pytest.fixture(autouse=True)
def hooks(tmp_path, monkeypatch):
    (tmp_path / "my_hooks.py").write_text(HOOKS)
    monkeypatch.syspath_prepend(tmp_path)
    load_hook.cache_clear()
    yield
    sys.modules.pop("my_hooks", None)


def run(root, *words):
    for name in ("crawl", "seed"):
        write_tar(
            root / name / "00000.tar", MEMBERS if name == "crawl" else {"a.jpg": MEMBERS["0.jpg"]}
        )
    (root / "pipelines.yaml").write_text(CONFIG)
    places = [f"--{name}={root / name}" for name in ("crawl", "seed", "out", "work")]
    config = f"--config={root / 'pipelines.yaml'}"
    result = CliRunner().invoke(main, ["run", "--executor=inline", config, *places, *words])
    return result.exit_code, result.output


def test_what_a_hook_changes_is_written_and_said_and_the_rest_keeps_its_bytes(tmp_path):
    status, said = run(tmp_path, "--set=export.hook=my_hooks:mirror_wide")
    assert status == 0, said
    with tarfile.open(tmp_path / "out" / "shards" / "00000.tar") as tar:
        members = {entry.name: tar.extractfile(entry).read() for entry in tar}
    rows = [json.loads(data) for name, data in members.items() if name.endswith(".json")]
    assert len(rows) == len(MEMBERS)
    for row in rows:
        data, original = members[f"{row['key']}.jpg"], MEMBERS[row["source_member"]]
        if not row["source_member"].startswith("wide"):
            assert data == original
            assert row["edited_by"] == ""
            continue
        assert row["edited_by"] == "my_hooks:mirror_wide"
        here, there = (np.asarray(Image.open(io.BytesIO(x)), int) for x in (data, original))
        assert np.abs(here - there[:, ::-1]).mean() < 2 < np.abs(here - there).mean()


def test_a_picture_that_the_hook_draws_on_is_changed():
    data = MEMBERS["0.jpg"]
    edited = Image.open(io.BytesIO(edit(data, "my_hooks:draw_on_it", "k", max_pixels=10**6)))
    assert edited.getpixel((5, 5)) == (255, 0, 0)
    assert edited.getpixel((20, 20)) == Image.open(io.BytesIO(data)).getpixel((20, 20))
    grey = Image.open(io.BytesIO(edit(data, "my_hooks:grey", "k", max_pixels=10**6)))
    assert grey.mode == "RGB"
    assert edit(data, "my_hooks:mirror_wide", "k", max_pixels=10**6) is data


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        ("my_hook:grey", ["module my_hook cannot be imported", "package.module:function"]),
        ("my_hooks:gray", ["module my_hooks has no function 'gray'", "did you mean 'grey'?"]),
        ("my_hooks:nothing", ["has no function 'nothing'"]),
        ("my_hooks.grey", ["export.hook"]),
    ],
)
def test_a_hook_that_is_not_there_is_one_line_before_anything_is_embedded(tmp_path, hook, told):
    status, said = run(tmp_path, f"--set=export.hook={hook}")
    assert status == 2
    assert said.count("\n") == 1, said
    assert all(text in said for text in told), said
    assert not (tmp_path / "work" / "vectors").exists()


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("my_hooks:fail", r"my_hooks:fail failed on p/a \(ValueError: no such luck\)"),
        ("my_hooks:forget", "my_hooks:forget returned NoneType for p/a, no picture"),
    ],
)
def test_a_hook_that_fails_is_one_line_with_the_image(hook, said):
    with pytest.raises(LvdError, match=said):
        edit(MEMBERS["0.jpg"], hook, "p/a", max_pixels=10**6)
