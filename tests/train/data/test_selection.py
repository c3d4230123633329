"""Selection lists: the pictures of shards in their order, wherever the crawl is, and what has changed."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from listed_images import ROW_GROUP, rows_of, write_list
from small_run import draw, write_shards

from shared.errors import LvdError
from shared.pictures.images import ImageError
from train.data.crops import Views
from train.data.index import read_index
from train.data.loader import make_loader
from train.data.order import Order
from train.data.resident import read_resident
from train.data.selection import read_selection
from train.data.settings import CropSettings, DataSettings
from train.distributed.ranks import Ranks

CROPS = CropSettings(global_size=16, local_size=8, local_views=2)
ALONE = Ranks(0, 1, 0, torch.device("cpu"))


@pytest.fixture
def crawl(tmp_path) -> Path:
    return write_shards(tmp_path / "crawl")


def read(place: Path, rows, shards=None, name="list.parquet"):
    path = write_list(place / name, rows)
    return read_selection(str(path), None if shards is None else str(shards), place / "index")


def content(index) -> dict[str, bytes | str]:
    numbers = np.random.default_rng(0).permutation(len(index)).tolist()
    found = dict(zip(map(index.key, numbers), index.read_each(numbers), strict=True))
    return {key: str(data) if isinstance(data, ImageError) else data for key, data in found.items()}


def batches(index, *, ranks=(0, 1), steps=(0, 5), resident=None):
    order = Order(index.sizes, batch_size=8, window=2, seed=3, weights=index.weights)
    return make_loader(
        index, order, Views(CROPS, 5), settings=DataSettings(workers=0), ranks=ranks,
        accumulate=1, start_step=steps[0], stop_step=steps[1], resident=resident,
    )  # fmt: skip


def pictures(loaded) -> list:
    return [
        [batch.step, batch.keys, batch.global_views.numpy().tobytes(), batch.broken]
        for batch in loaded
    ]


def drawn(crawl: Path) -> dict[str, bytes]:
    return {row["key"]: draw(int(row["key"][-9:])) for row in rows_of(crawl)}


def test_a_list_gives_the_pictures_of_its_shards_in_their_order(crawl, tmp_path):
    listed = read(tmp_path, rows_of(crawl))
    sharded = read_index(str(crawl), tmp_path / "shards")
    assert listed.sizes.tolist() == sharded.sizes.tolist() == [ROW_GROUP] * 3
    assert listed.weights is None
    assert content(listed) == content(sharded) == drawn(crawl)
    assert pictures(batches(listed)) == pictures(batches(sharded))


def test_weighted_images_come_again_as_other_views_on_any_ranks(crawl, tmp_path):
    rows = [row | {"weight": 3 if n == 7 else 0.5} for n, row in enumerate(rows_of(crawl))]
    index = read(tmp_path, rows)
    alone = list(batches(index, steps=(0, 6)))
    views: dict[str, list] = {}
    for batch in alone:
        for key, view in zip(batch.keys, batch.global_views.numpy(), strict=False):
            views.setdefault(key, []).append(view.tobytes())
    often = views[rows[7]["key"]]
    assert len(often) > 3
    assert all(len(seen) == len(set(seen)) for seen in views.values())
    assert pictures(batches(index, steps=(4, 6))) == pictures(alone[4:])
    halves = [list(batches(index, ranks=(rank, 2), steps=(0, 6))) for rank in range(2)]
    for batch, *own in zip(alone, *halves, strict=True):
        assert batch.keys == [key for each in own for key in each.keys]
    resident = read_resident(index, None, workers=0, prefetch=1, ranks=ALONE)
    seen = [batch.keys for batch in batches(index, resident=resident, steps=(0, 6))]
    assert seen == [batch.keys for batch in alone]


def test_a_crawl_may_have_moved_and_seeds_are_where_they_were(crawl, tmp_path):
    rows, seed = rows_of(crawl), tmp_path / "seed" / "00001.tar"
    seed.parent.mkdir()
    (write_shards(tmp_path / "other") / "00001.tar").rename(seed)
    of_seed = [
        row | {"key": f"seed {row['key']}", "seed": "photos"} for row in rows_of(seed.parent)
    ]
    first = read(tmp_path, rows + of_seed)
    before = content(first)
    (tmp_path / "new").mkdir()
    crawl.rename(tmp_path / "new/crawl")
    with pytest.raises(LvdError, match=r"00000.tar is not there: say with --shards[^\n]*$"):
        read(tmp_path, rows + of_seed, name="again.parquet")
    for shards in ("new", "new/crawl", "new/crawl/*.tar"):
        moved = read(tmp_path, rows + of_seed, tmp_path / shards)
        assert moved.fingerprint == first.fingerprint
        assert content(moved) == before


def test_of_files_of_one_name_the_one_below_the_same_folders_is_meant(tmp_path):
    for name in ("a", "b"):
        write_shards(tmp_path / "crawl" / name)
    rows = [row | {"key": f"b/{row['key']}"} for row in rows_of(tmp_path / "crawl/b")]
    (tmp_path / "crawl").rename(tmp_path / "moved")
    for path in (tmp_path / "moved/a").glob("*.tar"):
        path.write_bytes(b"other")
    index = read(tmp_path, rows, tmp_path / "moved")
    assert not [data for data in content(index).values() if isinstance(data, str)]
    rows = [row | {"part": row["part"].replace("/b/", "/a/")} for row in rows] + rows
    with pytest.raises(LvdError, match=r"would both be [^\n]*: name the whole crawl"):
        read(tmp_path, rows, tmp_path / "moved/b")


def test_a_folder_of_images_and_a_remote_crawl_are_read_too(crawl, tmp_path):
    rows = rows_of(crawl)[:ROW_GROUP]
    for n, row in enumerate(rows):
        path = tmp_path / "images" / f"{n}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(draw(int(row["key"][-9:])))
        rows[n] = row | {"part": str(path), "offset": 0, "key": f"{n}.jpg"}
    memory = fsspec.filesystem("memory")
    memory.put(str(crawl), "/test_selection", recursive=True)
    away = [
        row | {"part": f"memory://test_selection/{Path(row['part']).name}"}
        for row in rows_of(crawl)
    ]
    both = rows + away
    expected = {row["sha256"] for row in both}
    for shards in (None, "memory://test_selection"):
        found = content(read(tmp_path, both, shards))
        assert {hashlib.sha256(data).hexdigest() for data in found.values()} == expected
    memory.rm("/test_selection", recursive=True)


def test_an_image_that_has_changed_is_a_broken_one(crawl, tmp_path):
    rows = rows_of(crawl)
    index = read(tmp_path, rows)
    data = bytearray((crawl / "00001.tar").read_bytes())
    changed = rows[ROW_GROUP + 3]
    data[changed["offset"] + changed["size"] // 2] ^= 1
    (crawl / "00001.tar").write_bytes(data)
    found = content(index)
    assert found.pop(changed["key"]) == "it has changed since it was selected (sha256)"
    assert all(isinstance(data, bytes) for data in found.values())
    named = [each for batch in batches(index) for each in batch.broken]
    assert {key for key, _ in named} == {changed["key"]}
    unchecked = [row | {"sha256": None} for row in rows]
    assert isinstance(content(read(tmp_path, unchecked))[changed["key"]], bytes)


def test_a_worker_is_sent_the_name_of_the_index_and_no_weight(crawl, tmp_path):
    rows = [row | {"weight": 1.5} for row in rows_of(crawl)]
    index = read(tmp_path, rows)
    order = Order(index.sizes, batch_size=8, window=1, seed=0, weights=index.weights)
    sent = pickle.loads(pickle.dumps((index, order)))
    assert len(pickle.dumps(index)) < 500
    assert all(map(np.array_equal, sent[1].batch(3), order.batch(3)))
    assert content(sent[0]) == content(index)


def test_an_image_takes_100_bytes_and_its_key(crawl, tmp_path):
    rows = rows_of(crawl) * 50
    index = read(tmp_path, [row | {"key": f"{n:06d}"} for n, row in enumerate(rows)])
    groups = len(rows) // ROW_GROUP
    assert index.path.stat().st_size < len(rows) * (100 + 6 + 4) + 1400 * groups
    read(tmp_path, rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda rows: [{**row, "weight": -1} for row in rows],
            "the weight of 00000/000000000 is -1",
        ),
        (lambda rows: [{**row, "weight": None} for row in rows[1:]] + rows[:1], "is None: give"),
        (lambda rows: [{"key": row["key"]} for row in rows], "it has no column part"),
        (lambda rows: [*rows, rows[0] | {"size": None}], "rows without size"),
        (lambda rows: [*rows, rows[0] | {"offset": -1}], "an? offset below 0"),
        (lambda rows: [row | {"size": "large"} for row in rows], "a column is not of its type"),
        (lambda rows: rows[:0], "it has no column key"),
    ],
)
def test_a_list_that_is_wrong_is_refused_in_one_line(crawl, tmp_path, change, said):
    rows = change(rows_of(crawl))
    with pytest.raises(LvdError, match=rf"^--select [^\n]*{said}[^\n]*$"):
        read(tmp_path, rows)
    assert not list((tmp_path / "index").glob("*"))


@pytest.mark.parametrize("place", ["nowhere", "crawl", "crawl/00000.tar"])
def test_what_is_no_list_is_refused_in_one_line(crawl, tmp_path, place):
    with pytest.raises(LvdError, match=r"^--select: no list at [^\n]*selection.parquet[^\n]*$"):
        read_selection(str(tmp_path / place), None, tmp_path / "index")


def test_a_list_in_place_of_shards_is_told_to_be_one(crawl, tmp_path):
    path = write_list(tmp_path / "selection.parquet", rows_of(crawl))
    with pytest.raises(LvdError, match="is a selection list: name it with --select"):
        read_index(str(path), tmp_path / "index")
