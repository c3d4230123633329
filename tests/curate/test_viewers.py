"""Exports to FiftyOne, LightlyStudio and CSV tell of every image what the reports do, beside its bytes."""

import csv
import json
import re
import runpy
import sys
import tarfile
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from finished_run import HOSTILE, finished_run
from pictures import encoded, picture

from curate import embed
from curate.viewers.images import FIELDS, SHOWN, choose, written_images


@pytest.fixture
def export(finished_once, tmp_path):
    """Export the finished run, and return the status, the folder and what was said."""

    def export(kind, *words):
        folder = tmp_path / "exported" / kind
        status, said = finished_once(
            *("export", finished_once.out, f"--format={kind}", f"--to={folder}"),
            *(f"--work={finished_once.work}", *words),
        )
        return status, folder, " ".join(said)

    return export


@pytest.fixture(scope="module")
def rows(finished_once):
    """The rows of the reports by key."""
    table = pq.read_table(finished_once.out / "reports" / "images.parquet")
    return {row["key"]: row for row in table.to_pylist()}


@pytest.fixture(scope="module")
def originals(finished_once):
    """The bytes of the crawled images by key."""
    found = {}
    for path in (finished_once.data / "crawl").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".jpg"):
                    key = f"{path.stem}/{member.name.removesuffix('.jpg')}"
                    found[key] = tar.extractfile(member).read()
    return found


@pytest.fixture(scope="module")
def vectors(finished_once):
    """The vectors of the crawled images by key, of length 1."""
    known = embed(finished_once.data / "crawl", "descriptor")
    units = np.asarray(known.vectors, np.float64)
    return dict(zip(known.keys, units / np.linalg.norm(units, axis=1, keepdims=True), strict=True))


def test_fiftyone_gets_a_sample_for_each_image(export, rows, originals, vectors):
    status, folder, said = export("fiftyone", "--vectors")
    assert status == 0
    assert f"{len(rows)} images in {folder}" in said
    declared = {
        each["name"]: each
        for each in json.loads((folder / "metadata.json").read_text())["sample_fields"]
    }
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    assert [each["key"] for each in samples] == sorted(rows)
    for sample in samples:
        row = rows[sample["key"]]
        assert (folder / sample["filepath"]).read_bytes() == originals[sample["key"]]
        assert sample["tags"] == [sample["decision"]["label"]] == [row["decision"]]
        assert sample["metadata"]["width"] == row["width"]
        assert 0 <= sample["_rand"] < 1
        own = {name: sample[name] for name in FIELDS if name in sample and name != "decision"}
        assert own == {name: row[name] for name in own}
        assert len(own) == len(FIELDS) - 3
        np.testing.assert_allclose(sample["vector"], vectors[sample["key"]], atol=1e-3)
        assert not {name for name in sample if name[0] != "_"} - set(declared)
    kinds = {name: each["ftype"].rpartition(".")[2] for name, each in declared.items()}
    assert (kinds["group"], kinds["seed_similarity"]) == ("IntField", "FloatField")
    assert declared["vector"]["subfield"].endswith("FloatField")


def test_a_csv_lies_beside_the_pictures(export, rows, originals):
    status, folder, _ = export("csv", "--decision=kept")
    assert status == 0
    with (folder / "images.csv").open(newline="") as file:
        told = list(csv.DictReader(file))
    assert {each["key"] for each in told} == {k for k, r in rows.items() if r["decision"] == "kept"}
    for each in told:
        assert (folder / each.pop("path")).read_bytes() == originals[each["key"]]
        row = rows[each["key"]]
        assert each == {name: "" if row[name] is None else str(row[name]) for name in FIELDS}


@pytest.fixture
def studio(monkeypatch):
    """A stand-in for LightlyStudio: it notes what it is given, as its own methods take it."""
    given = SimpleNamespace(told=[], embedder=None)

    class ImageDataset:
        create = staticmethod(lambda name: ImageDataset())

        def add_images_from_path(self, path, tag_depth, embed):
            assert tag_depth == 1
            self.files = sorted(each for each in path.rglob("*") if each.is_file())
            if embed:
                given.result = given.embedder.embed_images([str(each) for each in self.files])

        def __iter__(self):
            return (SimpleNamespace(sample_id=f, file_path_abs=str(f)) for f in self.files)

        def update_metadata(self, told):
            given.told = told

    package, serve, base = (
        ModuleType(f"lightly_studio{end}") for end in ("", "_serve", "_serve.embedder")
    )
    package.ImageDataset = ImageDataset
    package.EmbeddingSpaceSpec = package.EmbeddingResult = lambda *args: args
    package.register_default_embedder = lambda embedder: setattr(given, "embedder", embedder)
    package.db_manager = SimpleNamespace(connect=lambda db_file, cleanup_existing: None)
    base.ImagePathEmbedder = object
    for module in (package, serve, base):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return given


def test_the_script_gives_lightly_studio_metadata_and_vectors(export, rows, vectors, studio):
    status, folder, said = export("lightly", "--vectors", "--limit=9")
    assert status == 0
    assert f"9 images in {folder}, drawn at random from {len(rows)}" in said
    runpy.run_path(str(folder / "studio.py"))["load"]()
    assert studio.embedder.embedding_space_spec() == (
        "lvd-curate",
        len(next(iter(vectors.values()))),
    )
    found, known = studio.result
    assert (len(studio.told), list(known)) == (9, list(range(9)))
    for (path, about), vector in zip(studio.told, found, strict=True):
        row = rows[about["key"]]
        assert path.parent.name == row["decision"]
        assert about == {name: row[name] for name in FIELDS if name in about}
        named_otherwise = {"decision", "width", "height", "format"}
        empty = {name for name in FIELDS if row[name] in (None, "")}
        assert set(about) == set(FIELDS) - named_otherwise - empty
        np.testing.assert_allclose(vector, vectors[about["key"]], atol=1e-3)


def test_images_are_drawn_alike_every_time_and_never_what_may_not_be_shown(tmp_path):
    out = finished_run(tmp_path / "out", images=60)
    tables = pq.read_table(out / "reports" / "images.parquet").to_pylist()
    showable = sorted(row["key"] for row in tables if row["decision"] in SHOWN)
    total, blocks = choose(out, SHOWN, 1_000)
    found = [row for block in blocks for row in block]
    assert [row["key"] for row in found] == showable
    assert total == len(showable) < len(tables)
    few, more = ({r["key"] for b in choose(out, SHOWN, n)[1] for r in b} for n in (5, 20))
    assert (len(few), len(more)) == (5, 20)
    assert few < more
    assert choose(out, ("kept",), 1)[0] == sum(row["decision"] == "kept" for row in tables)


def test_files_are_named_by_numbers_and_what_is_gone_is_left_out(tmp_path):
    bytes_of = {HOSTILE: encoded(picture(1)), "../../up": b"its own bytes", "gone": None}
    asked = [{"key": key, "decision": "kept", "format": "jpeg"} for key in bytes_of]
    asked[1]["format"] = "png"
    [found] = written_images([asked], tmp_path, bytes_of.get)
    assert [row["path"] for row in found] == ["data/kept/000000000.jpg", "data/kept/000000001.png"]
    assert [(tmp_path / row["path"]).read_bytes() for row in found] == list(bytes_of.values())[:2]
    assert sum(each.is_file() for each in tmp_path.rglob("*")) == 2


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(export, finished_once, tmp_path):
    for words, said_of_it in (
        (("--decision=unsafe",), "there are .*irrelevant"),
        (("--decision=kepd",), "kept"),
        (("--vectors",), "--format csv"),
        ((f"--work={tmp_path / 'none'}",), "none"),
    ):
        status, folder, said = export("csv", *words)
        assert status != 0
        assert said.count("\n") == 0
        assert re.search(said_of_it, said)
        assert not folder.exists()
    assert export("csv", "--limit=1")[0] == 0
    status, _, said = export("csv")
    assert status != 0
    assert "holds something already" in said
    assert [each.name for each in (tmp_path / "exported").iterdir()] == ["csv"]
