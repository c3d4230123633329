"""Runs find framed copies below their threshold by the pixels, and say so wherever copies are told."""

import io
import json
import shutil
import tarfile
from collections import Counter

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pictures import encoded, textured, write_tar
from PIL import Image, ImageOps

from curate import dedup, embed
from curate.cli import main

COPIES = 6
CONFIG = """
datasets:
  crawl: {path: ROOT/crawl}
  seed: {path: ROOT/seed}
pipelines:
  default:
    crawl: crawl
    seed: seed
    embedder: bundled-copies
    cluster: {clusters: 3}
    dedup: {threshold: 0.93, looks: 1, look_floor: 0.6}
    retrieve: {threshold: -1}
    report: {pictures: false}
"""


def framed(number):
    """Return a picture in a black border, smaller than the picture itself."""
    inner = textured(number).resize((76, 64))
    return ImageOps.expand(inner, border=(10, 8), fill="black").resize((72, 60))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A crawl of pictures `a`, of framed ones `b`, of these in small `c`, and of others `x`."""
    root = tmp_path_factory.mktemp("looks")
    members = {}
    for number in range(COPIES):
        members[f"{number}a.jpg"] = encoded(textured(number))
        members[f"{number}b.png"] = encoded(framed(number), "PNG")
        members[f"{number}c.jpg"] = encoded(framed(number).resize((66, 56)))
        members[f"{number}x.jpg"] = encoded(textured(100 + number))
    write_tar(root / "crawl" / "00000.tar", members)
    write_tar(root / "seed" / "00000.tar", {"s.jpg": encoded(textured(200))})
    (root / "held").mkdir()
    (root / "held" / "h.png").write_bytes(encoded(framed(5).resize((60, 50)), "PNG"))
    (root / "pipelines.yaml").write_text(CONFIG.replace("ROOT", str(root)))
    return root


def run(root, name, *words):
    asked = [f"--config={root}/pipelines.yaml", f"--out={root}/{name}", f"--work={root}/work"]
    result = CliRunner().invoke(main, ["run", "--executor=inline", *asked, *words])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return root / name, result.output


def rows(out, table):
    found = pq.read_table(out / "reports" / f"{table}.parquet").to_pylist()
    return {row["key"].rpartition("/")[2]: row for row in found}


def test_framed_copies_below_the_threshold_are_joined_and_no_others(root, monkeypatch):
    monkeypatch.chdir(root)
    out, said = run(root, "looked")
    images, members = rows(out, "images"), rows(out, "duplicates")
    assert set(members) == {f"{n}{kind}" for n in range(COPIES) for kind in "abc"}
    for number in range(COPIES):
        a, b, c = (members[f"{number}{kind}"] for kind in "abc")
        assert a["group"] == b["group"] == c["group"]
        assert a["representative"]
        assert (a["method"], b["method"], c["method"]) == ("exact", "looked", "looked")
        assert b["similarity"] < 0.93
        direct, through = (images[f"{number}{kind}"] for kind in "bc")
        assert direct["decision"] == through["decision"] == "duplicate"
        assert direct["reason"] == f"the same picture as 00000/{number}a, by its pixels"
        assert through["reason"] == f"the same picture as 00000/{number}a, through others"
        assert direct["duplicate_similarity"] == b["similarity"]
        assert images[f"{number}x"]["decision"] == "kept"
    funnel = json.loads((out / "reports" / "funnel.json").read_text())
    looks = funnel["dedup_looks"]
    assert looks["floor"] == 0.6
    assert (looks["confirmed"], looks["joined"], looks["unreadable"]) == (COPIES, 2 * COPIES, 0)
    assert COPIES < looks["looked"] <= 4 * COPIES
    assert funnel["decisions"]["duplicate"] == 2 * COPIES
    assert funnel["groups"]["members"] == 3 * COPIES
    assert funnel["dedup_precision"] is None  # no other opinion on what the pixels told
    one_picture = f"{COPIES} of {looks['looked']} pairs are one picture"
    assert one_picture in said
    [dedup] = [
        s for s in json.loads((out / "timings.json").read_text())["stages"] if s["name"] == "dedup"
    ]
    assert 0 < dedup["steps"]["a look below the threshold"] <= dedup["seconds"]
    assert "below the threshold, from 0.6000, in " in said
    assert one_picture in (out / "datasheet.md").read_text()
    told = CliRunner().invoke(main, ["explain", str(out), "00000/0b"]).output
    assert "the same picture as 00000/0a, by its pixels (cosine 0." in told


def test_no_looks_leave_apart_what_the_threshold_does(root, monkeypatch):
    monkeypatch.chdir(root)
    out, _ = run(root, "off", "--set=dedup.looks=0", "--set=dedup.look_floor=null")
    members = rows(out, "duplicates")
    assert set(members) == {f"{n}{kind}" for n in range(COPIES) for kind in "bc"}
    assert all(row["representative"] or row["method"] == "near" for row in members.values())
    funnel = json.loads((out / "reports" / "funnel.json").read_text())
    assert funnel["dedup_looks"] is None
    assert funnel["dedup_precision"]["copies"] == COPIES


def test_what_a_look_joins_a_holdout_drops_with_it(root, monkeypatch):
    monkeypatch.chdir(root)
    out, _ = run(root, "held-out", f"--holdout={root}/held")
    images = rows(out, "images")
    assert Counter(row["decision"] for row in images.values())["holdout"] == 3
    reason = images["5a"]["reason"]
    assert "by its pixels" in reason
    assert "of holdout" in reason
    assert images["5b"]["decision"] == images["5c"]["decision"] == "holdout"


def test_groups_of_components_follow_what_was_looked_at(root, monkeypatch):
    monkeypatch.chdir(root)
    out, _ = run(root, "components", "--set=dedup.groups=components", "--set=dedup.search=pool")
    greedy = duckdb.sql(f"from '{root}/looked/reports/duplicates.parquet' select key, \"group\"")
    found = duckdb.sql(f"from '{out}/reports/duplicates.parquet' select key, \"group\"")
    assert found.fetchall() == greedy.fetchall()


def test_a_picture_that_cannot_be_read_again_is_no_copy(root, monkeypatch):
    from curate.dedup import looks

    monkeypatch.chdir(root)
    monkeypatch.setattr(looks, "decode_pair", lambda *_: None)
    out, said = run(root, "unreadable", "--set=dedup.look_floor=0.61")
    funnel = json.loads((out / "reports" / "funnel.json").read_text())
    assert funnel["dedup_looks"]["confirmed"] == 0
    assert funnel["dedup_looks"]["unreadable"] == funnel["dedup_looks"]["looked"] > 0
    assert "unreadable" in said
    shutil.rmtree(out)


@pytest.mark.parametrize("mode", ["greedy", "components"])
def test_in_python_pictures_are_looked_at_as_in_a_run(root, monkeypatch, mode):
    monkeypatch.chdir(root)
    out, _ = run(root, f"run-{mode}", f"--set=dedup.groups={mode}")
    images = pq.read_table(out / "reports" / "images.parquet").to_pylist()
    stands = {row["key"]: row["duplicate_of"] or row["key"] for row in images}
    crawl = embed("crawl", "bundled-copies")
    assert crawl.keys == [row["key"] for row in images]
    best = sorted(
        range(len(images)),
        key=lambda n: (-images[n]["width"] * images[n]["height"], -images[n]["bytes"], n),
    )
    with tarfile.open(root / "crawl" / "00000.tar") as tar:
        names = [row["member"] for row in images]
        files = [tar.extractfile(name).read() for name in names]
    (folder := root / f"files-{mode}").mkdir()
    for name, data in zip(names, files, strict=True):
        (folder / name).write_bytes(data)
    in_memory = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]
    plain = dedup(crawl.vectors, 0.93, groups=mode, best=best)
    assert plain.kept.sum() > 2 * COPIES
    for pictures in ("crawl", [folder / name for name in names], in_memory):
        asked = {"pictures": pictures, "looks": 1.0, "look_floor": 0.5}
        found = dedup(crawl.vectors, 0.93, groups=mode, best=best, **asked)
        assert [crawl.keys[row] for row in found.representative] == list(stands.values())
    assert found.kept.sum() == 2 * COPIES
    (folder / names[0]).write_bytes(b"no picture")
    broken = [folder / name for name in names]
    found = dedup(crawl.vectors, 0.93, groups=mode, best=best, **asked | {"pictures": broken})
    assert found.kept.sum() == 2 * COPIES + 1
