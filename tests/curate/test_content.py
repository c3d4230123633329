"""What is computed is found by the bytes of a part, whatever it is called and wherever it lies."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failing_storage import failing, script
from made_collection import files_of
from pictures import ColourEmbedder, ColourForwards, colour_request, encoded, picture, write_tar

from curate.catalogue.content import local_copy
from curate.embedding import embed as module
from curate.embedding import stage
from curate.execution.session import open_runner
from curate.stage import EngineSettings
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.errors import LvdError

MEMBERS = {f"{number:02d}.png": encoded(picture(number), "PNG") for number in range(4)}


class Site:
    """A work folder on which datasets are embedded with the `ColourEmbedder`."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.read: list[str] = []
        """The parts that were read in the last run."""
        self.decoded = 0
        """The images that were decoded in it."""

    def embed(self, *paths: Path, **settings):
        """Embed a dataset; return it as catalogued."""
        parts = list_parts("crawl", DatasetSettings(path=[str(path) for path in paths], **settings))
        parts.sort(key=lambda part: part.name + "/")
        request = colour_request(self.work)
        self.read, self.decoded = [], 0
        with (
            pytest.MonkeyPatch.context() as patch,
            open_runner(self.work, EngineSettings(), "inline") as runner,
            runner.at_work("embed"),
        ):
            patch.setattr(module, "preparation", lambda settings: ColourEmbedder())
            patch.setattr(stage, "Forwards", lambda settings, threads: ColourForwards())
            patch.setattr(module, "local_copy", self._local_copy)
            decode = module.Decoder.decode
            patch.setattr(module.Decoder, "decode", lambda *args: self._count(decode, args))
            embedded = stage.embed(runner, "crawl", "crawl", parts, request)
            assert not embedded.aside, embedded.aside
            return stage.catalogued(runner, embedded, request.embedders[0])

    def _local_copy(self, part, scratch):
        self.read.append(part.paths[0])
        return local_copy(part, scratch)

    def _count(self, decode, args):
        self.decoded += 1
        return decode(*args)

    @property
    def units(self) -> dict[str, bytes]:
        """Facts and vectors of all parts that were ever embedded."""
        made = {}
        for kind in ("facts", "vectors"):
            made |= {f"{kind}/{name}": data for name, data in files_of(self.work / kind).items()}
        return made


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "work")


@pytest.fixture
def crawl(tmp_path):
    """A folder with a tar of four images."""
    write_tar(tmp_path / "in" / "a.tar", MEMBERS)
    return tmp_path / "in"


def keys(catalogued):
    collection = catalogued.collection
    return collection.keys(collection.order)


def test_what_is_as_it_was_is_not_even_read(site, crawl):
    first = site.embed(crawl)
    assert (site.read, site.decoded) == (["a.tar"], 4)
    assert keys(first) == [f"a/0{row}" for row in range(4)]
    assert site.embed(crawl).address == first.address
    assert (site.read, site.decoded) == ([], 0)


def touch(crawl):
    os.utime(crawl / "a.tar", (1, 1))
    return crawl


def copy(crawl):
    shutil.copytree(crawl, crawl.with_name("copied"), copy_function=shutil.copy2)
    return crawl.with_name("copied")


def move(crawl):
    return crawl.rename(crawl.with_name("moved"))


def rewrite(crawl):
    data = (crawl / "a.tar").read_bytes()
    (crawl / "a.tar").unlink()
    (crawl / "a.tar").write_bytes(data)
    return crawl


def rename(crawl):
    (crawl / "a.tar").rename(crawl / "b.tar")
    return crawl


@pytest.mark.parametrize("change", [touch, copy, move, rewrite, rename])
def test_the_same_bytes_are_read_and_never_computed_again(site, crawl, change):
    first = site.embed(crawl)
    before = site.units
    second = site.embed(change(crawl))
    assert site.read == ["b.tar" if change is rename else "a.tar"]
    assert site.decoded == 0
    assert site.units == before
    if change is rename:
        assert keys(second) == [f"b/0{row}" for row in range(4)]
    else:
        assert second.address == first.address


def test_the_files_of_a_folder_are_content_too(site, tmp_path):
    for name, data in MEMBERS.items():
        (tmp_path / "in" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "x" / name).write_bytes(data)
    first = site.embed(tmp_path / "in", folder_parts=1)
    assert keys(first) == [f"x/{name}" for name in MEMBERS]
    second = site.embed(move(tmp_path / "in"), folder_parts=1)
    assert (second.address, site.decoded) == (first.address, 0)
    (tmp_path / "moved" / "x").rename(tmp_path / "moved" / "y")
    third = site.embed(tmp_path / "moved", folder_parts=1)
    assert keys(third) == [f"y/{name}" for name in MEMBERS]


def test_a_link_that_leads_nowhere_is_a_row(site, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(MEMBERS["00.png"])
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "nowhere.png")
    made = site.embed(tmp_path / "in", folder_parts=1).collection
    problems = made.facts(made.order, ["problem"]).to_pydict()
    assert problems["key"] == ["a.png", "b.png"]
    assert problems["problem"][0] == ""
    assert "leads to no file" in problems["problem"][1]
    (tmp_path / "nowhere.png").write_bytes(MEMBERS["01.png"])  # now it leads somewhere
    made = site.embed(tmp_path / "in", folder_parts=1).collection
    assert made.facts(made.order, ["problem"])["problem"].to_pylist() == ["", ""]


def others(members):
    """Return members of the same sizes with other pictures in them."""
    return {name: data[:-30] + bytes(18) + data[-12:] for name, data in members.items()}


def test_other_bytes_of_the_same_size_and_time_are_other_content(site, crawl, tmp_path):
    first = site.embed(crawl)
    status = (crawl / "a.tar").stat()
    elsewhere = write_tar(tmp_path / "elsewhere" / "a.tar", others(MEMBERS))
    os.utime(elsewhere, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert elsewhere.stat().st_size == status.st_size
    second = site.embed(elsewhere.parent)
    assert site.read == ["a.tar"]
    assert second.address != first.address
    with (crawl / "a.tar").open("r+b") as stream:  # in place, and the time set back
        stream.write(elsewhere.read_bytes())
    os.utime(crawl / "a.tar", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (crawl / "a.tar").stat().st_mtime_ns == status.st_mtime_ns
    third = site.embed(crawl)
    assert site.read == ["a.tar"]
    assert third.address == second.address != first.address
    [content] = {fact["sha256"] for fact in third.collection.facts(np.array([0])).to_pylist()}
    assert content not in {
        fact["sha256"] for fact in first.collection.facts(np.arange(4)).to_pylist()
    }


def test_tars_of_the_same_bytes_share_what_is_made_and_keep_rows_of_their_own(site, crawl):
    shutil.copy2(crawl / "a.tar", crawl / "b.tar")
    made = site.embed(crawl)
    assert site.decoded == 4
    assert keys(made) == [f"{part}/0{row}" for part in "ab" for row in range(4)]
    assert made.collection.facts(made.collection.order)["part"].to_pylist() == 4 * ["a"] + 4 * ["b"]
    one, other = made.collection.parts
    assert (one.facts, one.vectors) == (other.facts, other.vectors)
    assert len(made.collection.usable) == 4  # the others are exact copies


def test_another_image_column_is_other_content(site, tmp_path):
    rows = {"key": ["0", "1"]}
    rows |= {"image": list(MEMBERS.values())[:2], "thumbnail": list(MEMBERS.values())[2:]}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "in" / "a.parquet")
    made = [
        site.embed(tmp_path / "in", image_column=column)
        for column in ("image", "thumbnail", "image")
    ]
    assert made[0].address == made[2].address != made[1].address
    assert site.decoded == 0


def test_a_part_without_a_stamp_is_always_read(site, crawl, monkeypatch):
    monkeypatch.setattr("shared.datasets.dataset._stamp", lambda *_: "")
    first = site.embed(crawl)
    assert site.embed(crawl).address == first.address
    assert (site.read, site.decoded) == (["a.tar"], 0)
    write_tar(crawl / "a.tar", others(MEMBERS))
    assert site.embed(crawl).address != first.address


def test_a_new_part_changes_no_file_of_another(site, crawl):
    site.embed(crawl)
    before = site.units
    write_tar(crawl / "0.tar", others(MEMBERS))
    made = site.embed(crawl)
    assert site.read == ["0.tar"]
    assert before.items() <= site.units.items()
    assert len(keys(made)) == 8


def test_a_part_that_changes_while_it_is_read_leaves_nothing(site, crawl, monkeypatch):
    tar = crawl / "a.tar"
    original = module.Batches.add

    def add(self, *args):
        data = tar.read_bytes()
        tar.with_name("beside").write_bytes(data)
        tar.with_name("beside").rename(tar)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module.Batches, "add", add)
        with pytest.raises(LvdError, match=r"a\.tar changed while it was read"):
            site.embed(crawl)
    assert not site.units
    assert len(site.embed(crawl).collection) == len(MEMBERS)


@pytest.mark.parametrize("remote", [False, True])
def test_pictures_that_are_not_read_are_whole_content_too(site, tmp_path, monkeypatch, remote):
    """An AVIF under a name that says nothing is a row, and other bytes of it are other content."""
    monkeypatch.setenv("FAILING_STORAGE", script(tmp_path / "script")["FAILING_STORAGE"])
    folder = tmp_path / "in"
    folder.mkdir()
    place = failing(folder) if remote else folder
    (folder / "0.png").write_bytes(MEMBERS["00.png"])
    seen = []
    for tail in (b"one", b"two"):
        data = b"\0\0\0\x1cftypavif" + bytes(500) + tail
        (folder / "x.avif?w=1").write_bytes(data)
        crawl = site.embed(place, folder_parts=1).collection
        facts = crawl.facts(np.arange(2), ["key", "sha256", "problem"]).to_pylist()
        [row] = [fact for fact in facts if fact["key"] == "x.avif?w=1"]
        assert "AVIF" in row["problem"]
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        seen.append(row["sha256"])
    assert len(set(seen)) == 2
