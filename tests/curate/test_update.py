"""`lvd-curate update`: a finished result takes in what is new in its crawl, and keeps what it holds."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from growing_crawl import LARGE, OWN, Site, decide_by_the_rule
from pictures import encoded, picture, write_tar

from curate.catalogue.collection import Collection
from curate.catalogue.keyed_order import keyed_hash
from curate.filters.head import dim_of
from shared.embedders.settings import EmbedderSettings


@pytest.fixture
def site(tmp_path, monkeypatch, grown_work):
    shutil.copytree(grown_work, tmp_path / "work")
    return Site(tmp_path, monkeypatch)


def test_an_update_keeps_what_is_there_and_adds_what_is_new(site):
    site("run", "--set=retrieve.threshold=0.2")
    old_rows, old_files = site.rows(), site.files()
    exported = {key: row for key, row in old_rows.items() if row["decision"] == "kept"}
    old_shards = {name for name in old_files if name.startswith("shards/")}
    site.grow()
    said = site("update", site.out)
    rows, files = site.rows(), site.files()

    for name in old_shards:
        assert files[name] == old_files[name], name
    for key, row in exported.items():
        now = rows[key]
        assert (now["output_shard"], now["output_key"]) == (row["output_shard"], row["output_key"])
    expected = decide_by_the_rule(site, exported, 0.95, 0.2)
    assert {k: (r["decision"], r["duplicate_of"]) for k, r in rows.items()} == expected
    assert rows["00000/better1"]["duplicate_of"] == "00001/001"
    assert rows["00000/same2"]["duplicate_of"] == "00001/002"
    assert rows["00000/031"]["duplicate_of"] == "00000/same31"

    added = [row for key, row in rows.items() if row["decision"] == "kept" and key not in exported]
    first = len(old_shards) // 3
    in_order = sorted(added, key=lambda row: keyed_hash(row["key"], 0))
    assert len(in_order) > 1
    for place, row in enumerate(in_order):
        assert row["output_shard"] == f"{first + place // 7:05d}"
        assert row["output_key"] == f"{row['output_shard']}{place % 7:04d}"
    decisions = site.json("reports/funnel.json")["decisions"]
    assert sum(decisions.values()) == len(rows) == 13 + 12 + 14
    assert site.json("reports/funnel.json")["thresholds"]["dedup"]["value"] == 0.95
    assert f"{decisions['kept']} of {len(rows)} images kept" in said
    site("verify", site.out)


def test_an_update_equals_one_that_computes_everything_anew(site):
    shutil.rmtree(site.work)
    site("run")
    shutil.copytree(site.out, site.root / "copy")
    site.grow()
    assert "(25 done before)" in site("update", site.out)
    made = site.files()
    shutil.rmtree(site.out)
    (site.root / "copy").rename(site.out)
    said = site("update", site.out, f"--work={site.root / 'fresh'}")
    assert "(25 done before)" not in said
    again = site.files()
    assert again.keys() == made.keys()
    for name in made:
        assert again[name] == made[name], name


def test_an_update_that_was_cut_off_is_finished_by_the_next(site, monkeypatch):
    site("run")
    old = site.files()
    shutil.copytree(site.out, site.root / "copy")
    site.grow()
    with monkeypatch.context() as patch:
        patch.setattr("curate.pipeline.write_tables", fail)
        site("update", site.out, status=2)
    assert site.files() == old
    site("update", site.out)
    made = site.files()
    shutil.rmtree(site.out)
    (site.root / "copy").rename(site.out)
    site("update", site.out)
    assert site.files() == made


def fail(*_):
    raise RuntimeError("killed")


def test_an_update_finishes_a_swap_that_was_cut_off(site):
    site("run")
    made = site.files()
    shutil.copytree(site.out, site.root / "out.partial")
    site.out.rename(site.root / ".out.replaced")
    assert "nothing to do" in site("update", site.out)
    assert site.files() == made
    assert not (site.root / ".out.replaced").exists()


def test_damage_of_what_is_kept_is_found_afterwards_too(site):
    site("run")
    path = site.out / "shards" / "00000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    site.grow()
    site("update", site.out)
    assert f"{path}: its content has changed" in site("verify", site.out, status=1)


def test_nothing_new_changes_nothing(site):
    site("run")
    stamp = (site.out / "run.json").stat().st_mtime_ns
    assert "nothing to do" in site("update", site.out)
    assert (site.out / "run.json").stat().st_mtime_ns == stamp


def test_budget_and_target_count_what_is_there(site):
    site("run", "--set=retrieve.max_images=10")
    exported = {key for key, row in site.rows().items() if row["decision"] == "kept"}
    assert len(exported) == 10
    site.grow()
    site("update", site.out)
    rows = site.rows()
    assert {key for key, row in rows.items() if row["decision"] == "kept"} == exported
    assert all(
        "not among the 10" in row["reason"]
        for row in rows.values()
        if row["decision"] == "over_budget"
    )


def test_a_share_of_the_grown_crawl_is_reached_with_what_is_there(site):
    site("run", "--set=retrieve.target=0.5", "--set=retrieve.threshold=null")
    exported = {key for key, row in site.rows().items() if row["decision"] == "kept"}
    assert len(exported) == 12  # of 24
    site.grow()
    site("update", site.out)
    rows = site.rows()
    kept = {key for key, row in rows.items() if row["decision"] == "kept"}
    assert exported < kept
    assert len(kept) == 17  # of 34
    others = {key: row["seed_similarity"] for key, row in rows.items() if row["seed_similarity"]}
    added = min(others[key] for key in kept - exported)
    assert all(others[key] <= added for key in others.keys() - kept)


def test_what_stays_below_the_new_threshold_is_not_called_relevant(site):
    site("run", "--set=retrieve.target=12", "--set=retrieve.threshold=null")
    site.grow()
    site("update", site.out)
    threshold = site.json("reports/funnel.json")["thresholds"]["retrieve"]["value"]
    kept = {k: r["seed_similarity"] for k, r in site.rows().items() if r["decision"] == "kept"}
    assert min(kept.values()) < threshold <= max(kept.values())
    for key, similarity in kept.items():
        said = "relevant" if similarity >= threshold else "kept from an earlier result"
        assert f"  {said}" in site("explain", site.out, key)


@pytest.mark.parametrize("drift", [0, 10])
def test_drift_decides_whether_centroids_are_found_anew(site, drift):
    site("run", f"--set=cluster.drift={drift}")
    before, fitted = site.files()["clusters/centroids.npy"], site.json("run.json")["clusters"]
    site.grow()
    site("update", site.out)
    now = site.json("run.json")["clusters"]
    if drift:
        assert now == {**fitted, "kept": True}
        assert site.files()["clusters/centroids.npy"] == before
        assert mean_distance(site) > fitted["distance"]
    else:
        assert now["images"] == 38  # of other bytes
        assert not now["kept"]
        assert now["distance"] == pytest.approx(mean_distance(site), abs=1e-6)


def mean_distance(site):
    """Return the mean of 1 - cosine of every crawled image and its nearest centroid, in float64."""
    content = site.json("run.json")["datasets"]["crawl"]["content"]
    crawl = Collection(site.work / "catalogue" / content / "all")
    vectors = crawl.vectors(np.arange(len(crawl))).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centroids = np.load(site.out / "clusters" / "centroids.npy").astype(np.float64)
    return float((1 - (vectors @ centroids.T).max(1)).mean())


def test_negative_seeds_bar_new_images_and_no_old_ones(site):
    seeds = "--set=seeds={own: {negative: true, threshold: 0.95}, seed: {}}"
    site("run", seeds, "--set=seed=null")
    assert site.rows()["00001/005"]["decision"] == "kept"
    site.grow()
    for n in (5, 30):
        (site.data / "own" / f"{n}.jpg").write_bytes(encoded(picture(n)))
    site("update", site.out)
    rows = site.rows()
    assert rows["00001/005"]["decision"] == "kept"
    assert rows["00000/030"]["decision"] == "irrelevant"
    assert "of negative seed own reaches 0.95" in rows["00000/030"]["reason"]
    site.require_whole()


def test_measured_thresholds_are_kept(site):
    site("run", "--set=dedup.threshold=auto", "--set=retrieve.threshold=auto")
    before = site.json("reports/funnel.json")["thresholds"]
    assert {each["source"] for each in before.values()} == {"calibrated"}
    site.grow()
    said = site("update", site.out)
    now = site.json("reports/funnel.json")["thresholds"]
    assert {name: each["value"] for name, each in now.items()} == {
        name: each["value"] for name, each in before.items()
    }
    assert {each["source"] for each in now.values()} == {"kept"}
    assert "kept from when the result was first made" in said


def test_what_was_removed_does_not_come_back(site):
    site("run")
    row = site.rows()["00001/004"]
    (site.root / "out.txt").write_text("00001/004\n")
    site("remove", site.out, "--list", site.root / "out.txt", "--kind=key", f"--work={site.work}")
    removed = site.rows("removed")
    site.grow()
    site("update", site.out)
    now = site.rows()["00001/004"]
    assert row["decision"] == "kept"
    assert (now["decision"], now["output_key"]) == ("unsafe", None)
    assert now["reason"] == "sha256 is on the list removed"
    assert site.rows("removed") == removed
    assert site.json("reports/funnel.json")["removed"]["images"] == 1
    assert site.json("run.json")["removed"][0]["images"] == 1
    site.grow()
    assert "nothing to do" in site("update", site.out)


def test_copies_of_what_was_removed_of_an_included_seed_do_not_come_back(site):
    copies = {f"{name}.png": encoded(picture(60, LARGE), "PNG") for name in ("a", "b")}
    write_tar(site.data / "crawl" / "00003.tar", copies)
    site("run", *OWN)
    assert site.rows()["00003/a"]["duplicate_of"] == "60.jpg"
    (site.root / "out.txt").write_text("60.jpg\n")
    site("remove", site.out, "--list", site.root / "out.txt", "--kind=key", f"--work={site.work}")
    site.grow()
    site("update", site.out)
    rows, removed = site.rows(), site.rows("removed")
    assert {rows[key]["decision"] for key in ("00003/a", "00003/b")} == {"unsafe"}
    assert removed["00003/a"]["reason"].startswith("a copy of 60.jpg of seed own: ")
    assert rows["00001/001"]["decision"] == "kept"
    site.require_whole()


def test_keys_of_removed_images_name_no_other_ones(site):
    site("run")
    rows = site.rows()
    last = max(row["output_shard"] or "" for row in rows.values())
    gone = {key: row["output_key"] for key, row in rows.items() if row["output_shard"] == last}
    (site.root / "out.txt").write_text("".join(f"{key}\n" for key in gone))
    site("remove", site.out, "--list", site.root / "out.txt", "--kind=key", f"--work={site.work}")
    site.grow()
    site("update", site.out)
    now = {row["output_key"] for row in site.rows().values() if row["output_key"]}
    assert now.isdisjoint(gone.values())
    assert min(key for key in now if key > last) == f"{int(last) + 1:05d}0000"
    site.require_whole()


def test_what_was_removed_of_an_included_seed_does_not_come_back(site):
    site("run", *OWN)
    (site.root / "out.txt").write_text("60.jpg\n")
    site("remove", site.out, "--list", site.root / "out.txt", "--kind=key", f"--work={site.work}")
    before = site.rows("seed_images")["60.jpg"]
    assert site.json("reports/funnel.json")["seeds"]["own"]["included"] == {"kept": 1, "unsafe": 1}
    assert "With them go 1 images of the seed own" in (site.out / "datasheet.md").read_text()
    site.grow()
    site("update", site.out)
    now = site.rows("seed_images")["60.jpg"]
    assert (before["decision"], now["decision"], now["output_key"]) == ("unsafe", "unsafe", None)
    assert now["reason"] == "sha256 is on the list removed"
    assert site.json("reports/funnel.json")["seeds"]["own"]["included"] == {"kept": 1, "unsafe": 1}
    site.require_whole()


def test_a_result_is_updated_again_and_again(site):
    site("run")
    site.grow()
    site("update", site.out)
    first = {k: r["output_key"] for k, r in site.rows().items() if r["decision"] == "kept"}
    write_tar(site.data / "crawl" / "00003.tar", {"070.jpg": encoded(picture(70))})
    site("update", site.out)
    now = {k: r["output_key"] for k, r in site.rows().items() if r["decision"] == "kept"}
    assert now.keys() - first.keys() == {"00003/070"}
    assert {key: now[key] for key in first} == first
    shards = sorted(path.stem for path in (site.out / "shards").glob("*.tar"))
    assert now["00003/070"] == f"{shards[-1]}0000"


def test_images_of_an_included_seed_stay_too(site):
    site("run", *OWN)
    before = site.rows("seed_images")
    assert {row["decision"] for row in before.values()} == {"kept"}
    site.grow()
    (site.data / "own" / "62.jpg").write_bytes(encoded(picture(62)))
    site("update", site.out)
    now = site.rows("seed_images")
    assert {key: now[key] for key in before} == before
    assert now["62.jpg"]["decision"] == "kept"
    assert now["62.jpg"]["output_shard"] > max(row["output_shard"] for row in before.values())


def test_images_of_included_seeds_stay_beside_new_ones_of_the_same_bytes(site):
    both = "{own: {include: true, strategy: none}, held: {include: true, strategy: none}, seed: {}}"
    site("run", f"--set=seeds={both}", "--set=seed=null")
    before = site.rows("seed_images")
    site.grow()
    (site.data / "own" / "00.jpg").write_bytes(encoded(picture(60)))
    (site.data / "held" / "00.jpg").write_bytes(encoded(picture(61)))
    site("update", site.out)
    now = pq.read_table(site.out / "reports" / "seed_images.parquet").to_pylist()
    assert {row["key"]: row for row in now if row["key"] in before} == before
    assert [row["decision"] for row in now if row["key"] == "00.jpg"] == ["duplicate"] * 2
    site.require_whole()


def test_new_images_are_judged_by_the_filters_of_models_too(site):
    dim = dim_of(EmbedderSettings(kind="descriptor"), 1)
    np.savez(site.root / "head.npz", weight=np.ones(dim))
    site("run", "--set=filters=[{name: bright, head: {file: head.npz}, min: -100}]")
    site.grow()
    site("update", site.out)
    assert all("bright" in dict(row["scores"]) for row in site.rows().values())
    assert "scores images for the filter bright" in (site.out / "datasheet.md").read_text()
    site.require_whole()


def test_a_filter_of_another_head_is_something_new(site):
    weight = np.ones(dim_of(EmbedderSettings(kind="descriptor"), 1))
    np.savez(site.root / "head.npz", weight=weight)
    site("run", "--set=filters=[{name: bright, head: {file: head.npz}, min: -100}]")
    score = dict(site.rows()["00001/001"]["scores"])["bright"]
    np.savez(site.root / "head.npz", weight=2 * weight)
    site("update", site.out)
    assert dict(site.rows()["00001/001"]["scores"])["bright"] == pytest.approx(2 * score, rel=1e-6)


@pytest.mark.parametrize("command", ["run", "update"])
def test_a_licence_that_is_stated_later_stands_in_the_datasheet(site, command):
    site("run")
    shards = {name: data for name, data in site.files().items() if name.startswith("shards/")}
    config = site.root / "pipelines.yaml"
    path = f"{site.data}/crawl"
    config.write_text(config.read_text().replace(f"{path}}}", f"{path}, licence: as asked}}"))
    site(command, *([site.out] if command == "update" else []))
    assert "as asked" in (site.out / "datasheet.md").read_text()
    assert shards.items() <= site.files().items()


def test_an_update_by_another_model_is_refused(site):
    site("run")
    made = site.files()
    site.grow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.embedders.descriptor.VERSION", "another")
        said = " ".join(site("update", site.out, status=2).split())
    assert "embedder descriptor is another model than when" in said
    assert site.files() == made


def test_copies_are_known_whatever_an_update_names(site):
    places = [str(site.root / name) for name in ("first", "second")]
    site("run", f"--set=export.also=[{places[0]}]")
    site.grow()
    site("update", site.out, f"--set=export.also=[{places[1]}]")
    assert site.json("run.json")["copies"] == places
    (site.root / "out.txt").write_text("00001/004\n")
    site("remove", site.out, "--list", site.root / "out.txt", "--kind=key", f"--work={site.work}")
    for place in places:
        assert (site.root / place / "run.json").read_bytes() == site.files()["run.json"]


def test_what_the_crawl_has_lost_or_changed_is_refused(site):
    site("run")
    made = site.files()
    kept = [key for key, row in site.rows().items() if row["output_key"] and key < "00002"]
    write_tar(site.data / "crawl" / "00001.tar", {"001.jpg": encoded(picture(90))})
    said = " ".join(site("update", site.out, status=2).split())
    assert f"{len(kept)} images that" in said
    assert "are gone from the crawl, or have other bytes now" in said
    assert "lvd-curate remove" in said
    assert site.files() == made


def test_copies_of_new_holdout_images_are_refused(site):
    site("run", "--holdout=held")
    (site.data / "held" / "4.jpg").write_bytes(encoded(picture(4)))
    said = " ".join(site("update", site.out, status=2).split())
    assert "1 images of the result to add to are copies of holdout images" in said


def test_images_of_included_seeds_that_are_copies_of_new_holdout_images_are_refused(site):
    site("run", *OWN, "--holdout=held")
    made = site.files()
    site.grow()
    (site.data / "held" / "60.jpg").write_bytes(encoded(picture(60)))
    said = " ".join(site("update", site.out, status=2).split())
    assert "1 images of the result to add to are copies of holdout images" in said
    assert site.files() == made


def test_other_settings_and_what_is_no_result_are_one_line(site):
    site("run")
    said = site("update", site.out, "--set=dedup.threshold=0.9", status=2)
    assert "has dedup.threshold=0.95, not 0.9" in said
    assert "is no finished run" in site("update", site.root / "none", status=2)
    old = site.json("run.json")
    del old["clusters"]
    (site.out / "run.json").write_text(json.dumps(old))
    assert "earlier version" in site("update", site.out, status=2)


def test_a_result_of_paths_is_updated_without_a_configuration(site):
    paths = (f"--crawl={site.data}/crawl", f"--seed={site.data}/seed")
    site("run", *paths)
    (site.root / "pipelines.yaml").rename(site.root / "mine.yaml")
    site.grow()
    site("update", site.out)
    site.require_whole()
    assert len(site.rows()) == 39
    said = site("update", site.out, "--config=pipelines.yaml", status=2)
    assert "pipelines.yaml" in said


def test_a_list_is_updated_too(site):
    site("run", "--set=export.format=list")
    before = pq.read_table(site.out / "selection.parquet").to_pylist()
    site.grow()
    site("update", site.out)
    table = pq.ParquetFile(site.out / "selection.parquet")
    now = table.read().to_pylist()
    assert now[: len(before)] == before
    rows = site.rows()
    assert [row["output_key"] for row in now] == [rows[row["key"]]["output_key"] for row in now]
    assert {row["key"] for row in now} == {k for k, r in rows.items() if r["decision"] == "kept"}
    groups = [table.read_row_group(n)["output_key"] for n in range(table.num_row_groups)]
    assert all(len({key.as_py()[:5] for key in group}) == 1 for group in groups)
    assert len(groups) == len({key.as_py()[:5] for group in groups for key in group})
    sheet = (site.out / "datasheet.md").read_text()
    assert f"In all {len(now)} images are listed in `selection.parquet`" in sheet
    assert "shards/" not in sheet
    site("verify", site.out)


@pytest.mark.parametrize("clusters", [25, 3])
def test_a_vector_of_what_was_removed_is_no_centroid_and_the_result_goes_on(site, clusters):
    site("run", f"--set=cluster.clusters={clusters}")
    content = site.json("run.json")["datasets"]["crawl"]["content"]
    crawl = Collection(site.work / "catalogue" / content / "all")
    [vector] = crawl.vectors(np.array([crawl.find("00001/004")])).astype(np.float64)
    vector /= np.linalg.norm(vector)
    path = site.out / "clusters" / "centroids.npy"
    before = np.load(path)
    cluster = site.rows()["00001/004"]["cluster"]
    alone = clusters == 25
    assert ((before @ vector).max() > 0.999999) == alone
    (site.root / "out.txt").write_text("00001/004\n")
    site("remove", site.out, "--list", site.root / "out.txt", "--kind=key", f"--work={site.work}")
    after = np.load(path)
    assert (after @ vector).max() < 0.9999
    others = np.arange(len(before)) != cluster
    assert not after[cluster].any()
    assert np.array_equal(after[others], before[others])
    site("verify", site.out)
    site.grow()
    site("update", site.out, "--set=cluster.drift=10")
    kept = site.json("run.json")["clusters"]["kept"]
    assert kept == (not alone)  # where each was its own centroid, any other is far from all
    if kept:
        assert np.array_equal(np.load(path), before[others])
    assert site.rows()["00001/004"]["decision"] == "unsafe"
    site.require_whole()
