"""Originals are the bytes that were embedded, or an error of the storage: never another picture."""

import numpy as np
import pytest
from failing_storage import FATAL, TRANSIENT, Rule, calls, failing, script
from pictures import ColourEmbedder, ColourForwards, colour_request, encoded, picture, write_tar

from curate.calibration.measure import edit
from curate.catalogue.originals import Originals, load_parts, save_parts
from curate.embedding.stage import catalogued, embed
from curate.execution.session import open_runner
from curate.stage import EngineSettings
from curate.state import LocalState
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.storage.failures import kind_of

MEMBERS = {f"{number:02d}.jpg": encoded(picture(number)) for number in range(4)}
FORMATS = ("tar", "tar.gz", "folder")


@pytest.fixture(params=FORMATS)
def crawl(request, tmp_path, monkeypatch):
    """Return a crawl of four pictures on `failing://`, its parts and where it is."""
    monkeypatch.setenv("FAILING_STORAGE", script(tmp_path / "script")["FAILING_STORAGE"])
    if request.param == "folder":
        path = tmp_path / "in"
        path.mkdir()
        for name, data in MEMBERS.items():
            (path / name).write_bytes(data)
    else:
        mode = "w" if request.param == "tar" else "w:gz"
        path = write_tar(tmp_path / "in" / f"p.{request.param}", MEMBERS, mode)
    parts = list_parts("crawl", DatasetSettings(path=failing(path), folder_parts=1))
    work = tmp_path / "work"
    request = colour_request(work)
    with (
        open_runner(work, EngineSettings(), "inline") as runner,
        runner.at_work("embed"),
    ):
        monkeypatch.setattr("curate.embedding.embed.preparation", lambda settings: ColourEmbedder())
        monkeypatch.setattr("curate.embedding.stage.Forwards", lambda *args: ColourForwards())
        monkeypatch.setattr(
            "curate.calibration.measure.preparation", lambda settings: ColourEmbedder()
        )
        embedded = embed(runner, "crawl", "crawl", parts, request)
        collection = catalogued(runner, embedded, request.embedders[0]).collection
    return collection, save_parts(parts, tmp_path / "parts.json"), path


def edited(crawl, tmp_path):
    collection, parts, _ = crawl
    out = tmp_path / "edited"
    out.mkdir(exist_ok=True)
    state, embedder = LocalState(ColourForwards()), EmbedderSettings(kind="descriptor")
    said = edit(state, embedder, collection, parts, 10**8, 0, np.arange(4), out=out)
    return said["images"], (out / "edited.npy").read_bytes()


@pytest.mark.parametrize("way", TRANSIENT)
def test_a_calibration_is_the_same_whatever_fails_for_a_moment(crawl, tmp_path, way):
    expected = edited(crawl, tmp_path)
    assert expected[0] == 4
    script(tmp_path / "script", Rule("read", way, skip=1, times=5), Rule("open", way, times=2))
    assert edited(crawl, tmp_path) == expected


@pytest.mark.parametrize("way", [*TRANSIENT, *FATAL])
def test_a_calibration_counts_no_image_that_the_storage_withholds(crawl, tmp_path, way):
    folder = tmp_path / "script"
    script(folder, Rule("read", way, skip=2))
    with pytest.raises(Exception) as caught:
        edited(crawl, tmp_path)
    assert kind_of(caught.value) == ("transient" if way in TRANSIENT else "fatal")
    assert calls(folder) == {"0": 2 + (6 if way in TRANSIENT else 1)}
    assert not (tmp_path / "edited" / "numbers.npy").exists()


def test_another_picture_in_its_place_is_a_part_that_changed(crawl, tmp_path):
    collection, parts, path = crawl
    other = {name: data[:-9] + b"tampered!" for name, data in MEMBERS.items()}
    if path.is_dir():
        (path / "00.jpg").write_bytes(other["00.jpg"])
    else:
        write_tar(path, other, "w:gz" if path.suffix == ".gz" else "w")
    with (
        Originals(collection, load_parts(parts), tmp_path) as originals,
        pytest.raises(LvdError, match="changed while the run was going on"),
    ):
        originals.read(0)


def test_facts_that_are_no_longer_kept_are_read_again(crawl, tmp_path, monkeypatch):
    collection, parts, _ = crawl
    monkeypatch.setattr("curate.catalogue.originals.ROW_GROUP", 2)
    monkeypatch.setattr("curate.catalogue.originals._KEPT", 1)
    keys = collection.keys(np.arange(4))
    with Originals(collection, load_parts(parts), tmp_path) as originals:
        for number in (3, 0, 2, 1, 3):
            name = str(keys[number]).rsplit("/", 1)[-1].removesuffix(".jpg")
            assert originals.read(number) == MEMBERS[f"{name}.jpg"]
