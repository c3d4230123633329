# ruff: noqa
import json, shutil
import numpy as np, pyarrow.parquet as pq, pytest
from pictures import encoded, picture, write_tar
from test_update import Site, computed, site, OWN
from click.testing import CliRunner
from curate.cli import main
from train.data.selection import read_selection
from train.data.order import Order, UNIT


def remove(site, *keys):
    (site.root / "out.txt").write_text("".join(f"{k}\n" for k in keys))
    return site(
        "remove", site.out, "--list", site.root / "out.txt", "--kind=key", f"--work={site.work}"
    )


def test_folder_crawl(site):
    f = site.data / "crawl"
    shutil.rmtree(f)
    f.mkdir()
    for n in range(20):
        (f / f"{n:03d}.jpg").write_bytes(encoded(picture(n)))
    site("run", "--set=export.format=list", "--set=export.embeddings=true")
    for n in range(20, 30):
        (f / f"{n:03d}.jpg").write_bytes(encoded(picture(n)))
    (f / "000b.png").write_bytes(encoded(picture(3, (96, 80)), "PNG"))
    before = pq.read_table(site.out / "selection.parquet").to_pylist()
    site("update", site.out)
    now = pq.read_table(site.out / "selection.parquet").to_pylist()
    assert now[: len(before)] == before
    remove(site, "004.jpg")
    for n in range(30, 33):
        (f / f"{n:03d}.jpg").write_bytes(encoded(picture(n)))
    site("update", site.out)
    now = pq.read_table(site.out / "selection.parquet").to_pylist()
    rows = site.rows()
    assert {r["output_key"]: r["key"] for r in now} == {
        r["output_key"]: k for k, r in rows.items() if r["output_key"]
    }
    site("verify", site.out)
    print(site("status", site.out))
    print(CliRunner().invoke(main, ["explain", str(site.out), "004.jpg"]).output)
    print(site("gc", f"--work={site.work}", site.out) if False else "")
    idx = read_selection(str(site.out), None, site.root / "idx")
    assert len(idx) == len(now)
    for n in range(len(idx)):
        idx.read(n)


def test_balance_list_included(site):
    site(
        "run",
        "--set=seeds={own: {include: true, strategy: none}, seed: {threshold: -1}, held: {threshold: 0.2}}",
        "--set=seed=null",
        "--set=export.format=list",
        "--set=balance.target=20",
        "--set=balance.repeats=3",
        "--set=balance.levels=[4,2]",
        "--set=export.embeddings=true",
    )
    f = site.json("reports/funnel.json")
    print(f["balance"], f["decisions"], f["problems"])
    rows = site.rows()
    now = pq.read_table(site.out / "selection.parquet").to_pylist()
    w = {r["output_key"]: r["weight"] for r in rows.values() if r["output_key"]}
    for r in now:
        assert r["weight"] == (1 if r["seed"] else w[r["output_key"]])
    assert sum(w.values()) == 20
    gone = [k for k, r in rows.items() if r["weight"] and r["weight"] > 1][:1]
    print(remove(site, *gone, "60.jpg"))
    now = pq.read_table(site.out / "selection.parquet").to_pylist()
    f = site.json("reports/funnel.json")
    rows = site.rows()
    assert f["balance"]["drawn"] == sum(r["weight"] or 0 for r in rows.values())
    assert f["balance"]["kept"] == f["decisions"]["kept"]
    assert sum(f["decisions"].values()) == f["images"]
    site("verify", site.out)
    idx = read_selection(str(site.out), None, site.root / "idx")
    assert len(idx) == len(now)
    order = Order(idx.sizes, batch_size=1, window=4, seed=0, weights=idx.weights)
    e = order.epoch(0)
    c = np.bincount(e, minlength=len(now))
    assert c.tolist() == [r["weight"] for r in now]
    print((site.out / "datasheet.md").read_text()[:2500])
    print(
        site(
            "explain", site.out, next(k for k, r in rows.items() if r["decision"] == "over_budget")
        )
        if f["decisions"]["over_budget"]
        else ""
    )
    print(site("explain", site.out, gone[0]))
    print(site("update", site.out, status=2))


def test_hook_caption_remove(site):
    (site.root / "myhook.py").write_text(
        "from PIL import ImageOps\ndef inv(p):\n    return ImageOps.invert(p)\n"
    )
    import sys

    sys.path.insert(0, str(site.root))
    write_tar(
        site.data / "crawl" / "00003.tar",
        {
            "1.jpg": encoded(picture(200)),
            "1.txt": b"hello",
            "2.jpg": encoded(picture(201)),
            "2.json": b'{"url": "http://a.b/c", "x": 3}',
        },
    )
    site(
        "run",
        "--set=export.hook=myhook:inv",
        "--set=export.embeddings=true",
        "--set=export.members=[json]",
    )
    site.require_whole()
    out = remove(site, "00003/1")
    site.require_whole()
    site.grow()
    site("update", site.out)
    site.require_whole()
    import tarfile

    r = site.rows()["00003/2"]
    with tarfile.open(site.out / "shards" / f"{r['output_shard']}.tar") as t:
        print(
            [n for n in t.getnames() if n.startswith(r["output_key"])],
            t.extractfile(r["output_key"] + ".json").read(),
        )
    print(site("run", "--set=export.hook=null", status=2))
