"""Of a part that has changed, only what is new is decoded; the result is that of a clean run."""

import shutil

import pytest
from made_collection import files_of
from pictures import encoded, picture, write_tar
from PIL import Image

from curate.embedding.decoder import Decoder
from curate.embedding.embed import Forwards, embed_part
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.state import LocalState
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.embedders.settings import EmbedderSettings, bundled_settings

DESCRIPTOR = EmbedderSettings(kind="descriptor", batch_size=4)
BUNDLED = bundled_settings().model_copy(update={"batch_size": 4})
FIRST = {f"{number:02d}.jpg": encoded(picture(number, (300, 200))) for number in range(0, 12, 2)}
FIRST |= {"20.png": encoded(Image.new("RGB", (64, 64)), "PNG"), "22.jpg": FIRST["00.jpg"][:-200]}
NEW = {f"{number:02d}.jpg": encoded(picture(number, (300, 200))) for number in (1, 13)}


@pytest.fixture
def decoded(monkeypatch):
    """The keys of the images that are decoded."""
    keys, decode = [], Decoder.decode

    def count(self, key, *args):
        keys.append(key)
        return decode(self, key, *args)

    monkeypatch.setattr(Decoder, "decode", count)
    return keys


@pytest.fixture(scope="module", params=[DESCRIPTOR, BUNDLED], ids=["descriptor", "bundled"])
def state(request):
    """The loaded forward pass of an embedder, and its settings."""
    return LocalState(Forwards((request.param,), 1)), (request.param,)


def embed(path, work, state):
    """Embed the one part at a path; return all files that are made of its newest content."""
    loaded, embedders = state
    [part] = list_parts("crawl", DatasetSettings(path=str(path), folder_parts=1))
    request = EmbedRequest(work, EmbedSettings(), embedders, (), 1)
    (work / "scratch").mkdir(parents=True, exist_ok=True)
    content = embed_part(loaded, part, request, scratch=work / "scratch")["content"]
    return {str(unit.relative_to(work)): files_of(unit) for unit in request.units(content)}


def lay(folder, members):
    folder.mkdir(exist_ok=True)
    for name, data in members.items():
        (folder / name).write_bytes(data)
    return folder


def test_of_a_folder_with_new_images_only_these_are_decoded(tmp_path, decoded, state):
    folder = lay(tmp_path / "in", FIRST)
    embed(folder, tmp_path / "work", state)
    assert set(decoded) == set(FIRST)
    decoded.clear()
    (folder / "02.jpg").unlink()
    after = embed(lay(folder, NEW), tmp_path / "work", state)
    assert set(decoded) == {*NEW, "22.jpg"}  # what is broken is looked at again
    assert after == embed(folder, tmp_path / "clean", state)


def test_of_a_tar_with_new_images_only_these_are_decoded(tmp_path, decoded, state):
    path = write_tar(tmp_path / "p.tar", FIRST)
    embed(path, tmp_path / "work", state)
    decoded.clear()
    write_tar(path, NEW | FIRST)
    after = embed(path, tmp_path / "work", state)
    assert {key.rpartition("/")[2] for key in decoded} == {"01", "13", "22"}
    assert after == embed(path, tmp_path / "clean", state)


def test_of_a_state_that_lacks_something_nothing_is_taken(tmp_path, decoded, state):
    folder = lay(tmp_path / "in", FIRST)
    [_, vectors] = embed(folder, tmp_path / "work", state)
    shutil.rmtree(tmp_path / "work" / vectors)
    decoded.clear()
    after = embed(lay(folder, NEW), tmp_path / "work", state)
    assert set(decoded) == {*FIRST, *NEW}
    assert after == embed(folder, tmp_path / "clean", state)
