# ruff: noqa
import json, shutil
import numpy as np, pyarrow.parquet as pq, pytest
from pictures import encoded, picture, write_tar
from test_update import Site, computed, site, OWN
from curate.catalogue.collection import Collection
from click.testing import CliRunner
from curate.cli import main


def check_emb(site):
    v = [np.load(p) for p in sorted((site.out / "embeddings/img_emb").glob("*.npy"))]
    t = [
        r
        for p in sorted((site.out / "embeddings/metadata").glob("*.parquet"))
        for r in pq.read_table(p).to_pylist()
    ]
    v = np.concatenate(v)
    rows = {}
    for name in ("images", "seed_images"):
        if (site.out / f"reports/{name}.parquet").exists():
            rows |= {
                r["output_key"]: (name, r) for r in site.rows(name).values() if r["output_key"]
            }
    assert [r["image_path"] for r in t] == sorted(rows)
    run = site.json("run.json")["datasets"]
    roles = {"images": "crawl", "seed_images": "seed own"}
    for vec, r in zip(v, t, strict=True):
        name, row = rows[r["image_path"]]
        assert row["key"] == r["key"]
        data = Collection(site.work / "catalogue" / run[roles[name]]["content"] / "all")
        assert np.array_equal(vec, data.vectors(np.array([data.find(row["key"])]))[0]), row["key"]


def remove(site, *keys):
    (site.root / "out.txt").write_text("".join(f"{k}\n" for k in keys))
    return site(
        "remove", site.out, "--list", site.root / "out.txt", "--kind=key", f"--work={site.work}"
    )


def test_embeddings_members_bytes(site, monkeypatch):
    monkeypatch.setattr("curate.export.embeddings.SHARDS", 2)
    site(
        "run",
        *OWN,
        "--set=export.embeddings=true",
        "--set=export.shard_bytes=5000",
        "--set=export.members=[cls]",
        "--set=export.encode=jpeg",
        "--set=dedup.keep=bytes",
    )
    check_emb(site)
    site.require_whole()
    remove(site, "00001/004", "60.jpg")
    check_emb2 = check_emb
    site.require_whole()
    site.grow()
    write_tar(site.data / "crawl" / "00003.tar", {"1.jpg": encoded(picture(200)), "1.cls": b"7"})
    site("update", site.out)
    check_emb(site)
    site.require_whole()
    print(sorted(p.name for p in (site.out / "embeddings/img_emb").iterdir()))
    f = site.json("reports/funnel.json")
    assert sum(f["decisions"].values()) == f["images"] == len(site.rows())
    import tarfile

    r = site.rows()["00003/1"]
    with tarfile.open(site.out / "shards" / f"{r['output_shard']}.tar") as t:
        print([n for n in t.getnames() if n.startswith(r["output_key"])])
    print("".join((site.out / "datasheet.md").read_text())[:3000])


def test_last_shard_removed(site):
    site("run")
    rows = site.rows()
    last = max(r["output_shard"] for r in rows.values() if r["output_shard"])
    gone = {k: r["output_key"] for k, r in rows.items() if r["output_shard"] == last}
    remove(site, *gone)
    site.grow()
    site("update", site.out)
    again = {
        k: r["output_key"] for k, r in site.rows().items() if r["output_key"] in set(gone.values())
    }
    print("REUSED", gone, again)
    site.require_whole()


@pytest.mark.parametrize("keep", ["metadata", "random", "bytes"])
def test_keep(site, keep):
    site("run", f"--set=dedup.keep={keep}")
    site.grow()
    site("update", site.out)
    site.require_whole()


def test_pool(site):
    site(
        "run",
        "--set=dedup.groups=components",
        "--set=dedup.search=pool",
        "--set=dedup.neighbours=3",
    )
    site.grow()
    site("update", site.out)
    site.require_whole()


def test_rename_part(site):
    site("run")
    (site.data / "crawl" / "00002.tar").rename(site.data / "crawl" / "10002.tar")
    print("RENAMED", site("update", site.out, status=2))
    said = site("run", status=0)
    print(said[-500:])


def test_part_with_one_more(site):
    site("run")
    old = {f"{n:03d}.jpg": encoded(picture(n)) for n in range(12)} | {
        "zz.jpg": encoded(picture(300))
    }
    write_tar(site.data / "crawl" / "00001.tar", old)
    site("update", site.out)
    site.require_whole()
    assert site.rows()["00001/zz"]["decision"] == "kept"


def test_negative(site):
    site(
        "run",
        "--set=seeds={own: {negative: true, threshold: 0.9}, seed: {target: 12}}",
        "--set=seed=null",
        "--set=retrieve.threshold=null",
    )
    print(
        site.json("reports/funnel.json")["decisions"], site.json("reports/funnel.json")["problems"]
    )
    site.grow()
    # new negative image equal to an exported one
    k = next(k for k, r in site.rows().items() if r["decision"] == "kept")
    (site.data / "own" / "n.jpg").write_bytes(encoded(picture(int(k[-3:]))))
    site("update", site.out)
    site.require_whole()
    r = site.rows()[k]
    print(k, r)
    print(site("explain", site.out, k))
    print(
        site.json("reports/funnel.json")["decisions"],
        site.json("reports/funnel.json")["seeds"],
        site.json("reports/funnel.json")["problems"],
    )


def test_explain_target(site):
    site("run", "--set=retrieve.target=12", "--set=retrieve.threshold=null")
    old = [k for k, r in site.rows().items() if r["decision"] == "kept"]
    site.grow()
    # seeds shrink/grow: new images more similar
    new = {f"{n:03d}.jpg": encoded(picture(n)) for n in range(100, 104)}
    site("update", site.out)
    rows = site.rows()
    worst = min(old, key=lambda k: rows[k]["seed_similarity"])
    f = site.json("reports/funnel.json")
    print(f["thresholds"], rows[worst]["seed_similarity"])
    print(site("explain", site.out, worst))


def test_folder_crawl(site):
    f = site.data / "crawl"
    shutil.rmtree(f)
    f.mkdir()
    for n in range(20):
        (f / f"{n:03d}.jpg").write_bytes(encoded(picture(n)))
    site("run", "--set=export.format=list")
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
    print(site("report", site.out))
    site("verify", site.out)
    print(site("status", site.out))
    print(CliRunner().invoke(main, ["explain", str(site.out), "004.jpg"]).output)
