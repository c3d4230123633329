"""Lists in place of shards: their files and rows, weights, names that are no text, pictures."""

import json
import os
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from pictures import encoded, picture

from curate.catalogue.collection import Collection
from curate.catalogue.originals import save_parts
from curate.export import selection_list
from curate.export.bounds import ShardBounds
from curate.export.selection_list import ListedSource, list_files, list_images
from curate.export.shards import ExportSettings
from shared.datasets.dataset import DatasetSettings, list_parts

AS_LIST = ("--set=export.format=list", "--replace")


def listed(out) -> list[dict]:
    return [row for path in list_files(out) for row in pq.read_table(path).to_pylist()]


def images(out) -> list[dict]:
    return pq.read_table(out / "reports/images.parquet").to_pylist()


@pytest.fixture
def shards(small_run, tmp_path):
    """The result with shards; `small_run.out` becomes one with a list."""
    return shutil.copytree(small_run.out, tmp_path / "shards")


def test_a_list_of_several_files_is_one_of_one_file_in_pieces(small_run, shards, monkeypatch):
    small_run.run(*AS_LIST)
    whole = listed(small_run.out)
    assert len(whole) > 8
    assert [row["output_key"] for row in whole] == [
        f"{n // 8:05d}{n % 8:04d}" for n in range(len(whole))
    ]
    assert not (small_run.out / "shards").exists()
    monkeypatch.setattr(selection_list, "BLOCK", 8)
    small_run.run(*AS_LIST, "--set=report.top_k=4")
    files = list_files(small_run.out)
    assert len(files) == -(-len(whole) // 8) > 1
    assert {pq.ParquetFile(path).num_row_groups for path in files} == {1}
    assert listed(small_run.out) == whole
    assert small_run("verify", small_run.out)[0] == 0


def test_the_pictures_of_a_report_are_those_of_a_run_with_shards(small_run, shards):
    small_run.run(*AS_LIST)
    drawn, expected = (
        re.findall('src="data:[^"]+"', (out / "reports" / "index.html").read_text())
        for out in (small_run.out, shards)
    )
    assert len(drawn) > 20
    assert drawn == expected


def test_where_nothing_is_kept_the_list_is_empty(small_run):
    small_run.run(*AS_LIST, "--set=retrieve.threshold=1")
    assert listed(small_run.out) == []
    assert list_files(small_run.out)


def test_images_are_drawn_as_often_as_select_says(small_run, tmp_path):
    small_run.run(*AS_LIST)
    run = json.loads((small_run.out / "run.json").read_text())
    crawl = Collection(small_run.work / "catalogue" / run["datasets"]["crawl"]["content"] / "all")
    parts = list_parts("crawl", DatasetSettings(path=str(small_run.data / "crawl")))
    for folder in (small_run.work / "select").glob("*/all"):
        selected = shutil.copytree(folder, tmp_path / folder.parent.name)
    np.save(selected / "weight.npy", np.arange(len(crawl), dtype=np.int32))
    source = ListedSource(None, crawl, save_parts(parts, tmp_path / "parts.json"))
    count = len(np.load(selected / "order.npy"))
    np.save(tmp_path / "bounds.npy", np.array([0, count]))
    bounds = ShardBounds(tmp_path / "bounds.npy")
    list_images([source], selected, bounds, [0, count], out=tmp_path)
    weights = {row["key"]: row["weight"] for row in listed(tmp_path)}
    assert weights == {key: crawl.find(key) for key in weights}
    assert len(weights) == count


@pytest.mark.parametrize("said", ["members=[txt]", "encode=webp", "resize={smaller_side: 9}"])
def test_what_a_list_cannot_do_is_refused(said):
    settings = {"format": "list", **yaml.safe_load(said.replace("=", ": "))}
    with pytest.raises(ValueError, match=f"so {said.split('=')[0]} has no effect"):
        ExportSettings(**settings)


def test_an_image_of_a_folder_is_a_file_of_its_own(small_run, tmp_path):
    crawl = tmp_path / "photos"
    (crawl / "a").mkdir(parents=True)
    for number in range(6):
        (crawl / "a" / f"{number}.jpg").write_bytes(encoded(picture(number)))
    odd = crawl / os.fsdecode(b"caf\xe9.jpg")
    odd.write_bytes(encoded(picture(7)))
    small_run.run(*AS_LIST, f"--crawl={crawl}", "--set=filters=[]")
    rows = {row["key"]: row for row in listed(small_run.out)}
    kept = {row["key"] for row in images(small_run.out) if row["decision"] == "kept"}
    assert rows.keys() == kept
    for key, row in rows.items():
        assert (row["offset"], row["member"]) == (0, key)
        assert row["part"] == f"{crawl}/{key}"
    assert "caf\\xe9.jpg" in rows


@pytest.mark.parametrize("dataset", ["crawl", "seed"])
def test_parts_without_plain_bytes_are_refused_before_anything_is_computed(
    small_run, tmp_path, dataset
):
    table = tmp_path / "in" / "images.parquet"
    table.parent.mkdir()
    pq.write_table(
        pq.read_table(small_run.out / "reports/images.parquet")
        .select(["key"])
        .append_column("image", [[encoded(picture(0))] * len(images(small_run.out))]),
        table,
    )
    words = {
        "crawl": (f"--crawl={table.parent}",),
        "seed": (
            "--set=seed=null",
            f"--set=datasets.t={{path: {table}}}",
            "--set=seeds={t: {include: true}}",
        ),
    }[dataset]
    status, said = small_run("run", f"--out={tmp_path / 'new'}", *AS_LIST, *words)
    assert status == 2
    assert "images.parquet is a Parquet file, whose images no list can name" in said[-1]
    assert not (tmp_path / "new").exists()
