"""`lvd-curate run --since OLD`: all shards anew, and what an earlier result exported stays."""

import shutil

import pytest
from growing_crawl import LARGE, OWN, Site, decide_by_the_rule, load_crawl, rank_by_the_rule
from pictures import encoded, picture, write_tar
from test_groups import reference_components
from test_keep import reference_settled

from curate.catalogue.keyed_order import keyed_hash

WRITTEN = ("output_shard", "output_key")


@pytest.fixture
def site(tmp_path, monkeypatch, grown_work):
    shutil.copytree(grown_work, tmp_path / "work")
    return Site(tmp_path, monkeypatch)


def set_old_aside(site):
    """Let a result be an earlier one beside OUT, and return where it is."""
    site.out.rename(site.root / "old")
    return f"--since={site.root / 'old'}"


def kept(site):
    return {key: row for key, row in site.rows().items() if row["decision"] == "kept"}


def test_tables_equal_those_of_an_update_and_of_the_rule_in_float64(site):
    asked = ("--set=retrieve.threshold=0.2", "--set=cluster.drift=10")
    site("run", *asked)
    exported, centroids = kept(site), site.files()["clusters/centroids.npy"]
    shutil.copytree(site.out, site.root / "old")
    site.grow()
    site("update", site.out)
    updated = {name: site.rows(name) for name in ("images", "duplicates", "retrieval")}
    shutil.rmtree(site.out)
    site("run", f"--since={site.root / 'old'}", *asked)
    for name, rows in updated.items():
        for key, row in site.rows(name).items():
            assert {**row, **dict.fromkeys(WRITTEN)} == {**rows[key], **dict.fromkeys(WRITTEN)}
    expected = decide_by_the_rule(site, exported, 0.95, 0.2)
    rows = site.rows()
    assert {k: (r["decision"], r["duplicate_of"]) for k, r in rows.items()} == expected
    assert rows["00000/better1"]["duplicate_of"] == "00001/001"
    assert site.files()["clusters/centroids.npy"] == centroids
    in_order = sorted(kept(site).values(), key=lambda row: keyed_hash(row["key"], 0))
    names = [(f"{n // 7:05d}", f"{n // 7:05d}{n % 7:04d}") for n in range(len(in_order))]
    assert [(row["output_shard"], row["output_key"]) for row in in_order] == names
    site.require_whole()


def test_in_place_it_can_be_cut_off_and_called_again(site, monkeypatch):
    site("run")
    old, exported = site.files(), kept(site)
    site.grow()
    said = site("run", f"--since={site.out}", status=2)
    assert "say --replace to swap it at the end" in " ".join(said.split())
    asked = ("run", f"--since={site.out}", "--replace")
    with monkeypatch.context() as patch:
        patch.setattr("curate.pipeline.write_tables", fail)
        site(*asked, status=2)
    assert site.files() == old
    site(*asked)
    made = site.files()
    assert exported.keys() < kept(site).keys()
    assert "nothing to do" in site(*asked)
    assert site.files() == made
    shutil.copytree(site.out, site.root / "out.partial")  # cut off between the two renames
    site.out.rename(site.root / ".out.replaced")
    assert "nothing to do" in site(*asked)
    assert site.files() == made
    site.require_whole()


def fail(*_):
    raise RuntimeError("killed")


def test_the_same_earlier_result_gives_the_same_bytes_and_another_needs_replace(site):
    site("run")
    since = set_old_aside(site)
    site.grow()
    site("run", since)
    made = site.files()
    assert "nothing to do" in site("run", since)
    shutil.move(site.out, site.root / "first")
    site("run", since, f"--work={site.root / 'fresh'}")
    assert site.files() == made
    assert "nothing to do" in site("run")
    (site.data / "seed" / "109.jpg").write_bytes(encoded(picture(109)))
    said = " ".join(site("run", status=2).split())
    assert "holds a run with since=" in said
    assert "say --replace" in said


def test_a_result_that_was_made_since_another_is_updated_too(site):
    site("run")
    since = set_old_aside(site)
    site.grow()
    site("run", since)
    exported = kept(site)
    write_tar(site.data / "crawl" / "00003.tar", {"070.jpg": encoded(picture(70))})
    site("update", site.out)
    now = kept(site)
    assert now.keys() - exported.keys() == {"00003/070"}
    assert {key: now[key] for key in exported} == exported


def test_filters_and_lists_of_the_run_drop_what_was_exported(site):
    site("run")
    exported = kept(site)
    since = set_old_aside(site)
    site.grow()
    (site.root / "out.txt").write_text("00001/001\n")
    write_tar(
        site.data / "crawl" / "00002.tar",
        {f"{n:03d}.jpg": encoded(picture(n)) for n in range(13, 24)},
    )
    gone = exported.keys() & {"00002/012", "00002/copy"}
    site("run", since, "--set=lists={optout: {kind: key, path: out.txt}}", "--set=cluster.drift=9")
    rows = site.rows()
    assert rows["00001/001"]["decision"] == "unsafe"
    assert exported.keys() - kept(site).keys() == {"00001/001", *gone}
    assert rows["00000/better1"]["decision"] == "kept"
    [line] = [x for x in site.json("reports/funnel.json")["problems"] if "earlier result" in x]
    assert line.startswith(f"{1 + len(gone)} of the {len(exported)} images")
    site.require_whole()


def test_what_was_exported_is_known_by_its_bytes_in_a_part_of_another_name(site):
    site("run")
    exported = kept(site)
    since = set_old_aside(site)
    site.grow()
    (site.data / "crawl" / "00001.tar").rename(site.data / "crawl" / "00009.tar")
    site("run", since)
    expected = {key.replace("00001/", "00009/") for key in exported} - {"00009/002"}
    assert expected | {"00000/same2"} < kept(site).keys()  # of the same bytes the first key
    assert site.rows()["00000/better1"]["duplicate_of"] == "00009/001"
    assert site.rows()["00009/002"]["duplicate_of"] == "00000/same2"
    assert not any("earlier" in line for line in site.json("reports/funnel.json")["problems"])
    site.require_whole()


def test_thresholds_that_were_measured_are_kept_and_those_that_are_said_are_used(site):
    measured = ("--set=dedup.threshold=auto", "--set=retrieve.threshold=auto")
    site("run", *measured)
    before = site.json("reports/funnel.json")["thresholds"]
    since = set_old_aside(site)
    site.grow()
    said = site("run", since, *measured, "--dry-run")
    for name in ("dedup", "retrieve"):
        value = before[name]["value"]
        assert f"threshold {value} (inclusive, kept from the earlier result)" in said
    assert "auto: measured in the run" not in said
    site("run", since, measured[0], "--set=retrieve.threshold=0.1")
    now = site.json("reports/funnel.json")["thresholds"]
    assert now["dedup"] == {"value": before["dedup"]["value"], "source": "kept"}
    assert now["retrieve"] == {"value": 0.1, "source": "pipeline"}


def test_what_was_removed_stays_out(site):
    site("run")
    (site.root / "out.txt").write_text("00001/004\n")
    site("remove", site.out, "--list", site.root / "out.txt", "--kind=key", f"--work={site.work}")
    removed = site.rows("removed")
    since = set_old_aside(site)
    shutil.rmtree(site.root / "old" / "shards")  # which nothing of this looks at
    site.grow()
    site("run", since)
    assert site.rows()["00001/004"]["decision"] == "unsafe"
    assert site.rows("removed") == removed
    assert site.json("run.json")["removed"][0]["images"] == 1
    site.require_whole()


def test_included_seeds_and_centrality_keep_to_the_rule(site):
    asked = (*OWN, "--set=dedup={threshold: 0.9, groups: components, keep: centrality}")
    write_tar(site.data / "crawl" / "00002.tar", {"001.png": encoded(picture(1), "PNG")})
    site("run", *asked)
    exported, seeds = kept(site), site.rows("seed_images")
    since = set_old_aside(site)
    edits = {f"{n}.jpg": encoded(picture(1, (96, 72 + n))) for n in range(4)}
    write_tar(site.data / "crawl" / "00000.tar", edits | {"70.jpg": encoded(picture(70, LARGE))})
    site("run", since, *asked)
    rows, first = site.rows(), next(key for key in exported if key.endswith("/001"))
    assert exported.keys() <= kept(site).keys()
    assert {rows[f"00000/{n}"]["duplicate_of"] for n in range(4)} == {first}
    now = site.rows("seed_images")
    assert {k: r["decision"] for k, r in now.items()} == {
        k: r["decision"] for k, r in seeds.items()
    }
    site.require_whole()


def test_what_is_no_result_is_refused(site):
    assert "is no finished run" in site("run", f"--since={site.root / 'none'}", status=2)


def test_balance_counts_what_is_there(site):
    asked = ("--set=balance={target: 0.5, levels: [4, 2]}",)
    site("run", *asked)
    exported = kept(site).keys()
    assert len(exported) == 12  # of 24
    shutil.copytree(site.out, site.root / "old")
    site.grow()
    site("update", site.out)
    updated = kept(site)
    assert len(updated) == 17  # of 34
    assert exported < updated.keys()
    assert site.json("reports/funnel.json")["balance"]["drawn"] == 17
    site.require_whole()
    shutil.rmtree(site.out)
    site("run", f"--since={site.root / 'old'}", *asked)
    again = kept(site)
    assert again.keys() == updated.keys()
    site("run", f"--since={site.root / 'old'}", "--set=balance.target=5", "--replace")
    assert kept(site).keys() == exported


def test_chains_are_parted_by_the_rule_in_float64(site):
    asked = "--set=dedup={threshold: 0.7, groups: components, chain_floor: 0.8, looks: 0}"
    site("run", asked)
    exported = kept(site)
    site.grow()
    site("update", site.out)
    rows = site.rows()
    keys, facts, vectors = load_crawl(site)
    ranked, _ = rank_by_the_rule(keys, facts, exported)
    exact, places = vectors[ranked] @ vectors[ranked].T, range(len(ranked))
    fixed = {place for place in places if keys[ranked[place]] in exported}
    stands = reference_settled(exact, list(places), 0.7, False, 0.8, fixed)
    for place in places:
        own, leader = keys[ranked[place]], keys[ranked[stands[place]]]
        assert rows[own]["duplicate_of"] == (None if leader == own else leader)
    pairs = [(a, b) for a in places for b in range(a) if exact[a, b] >= 0.7]
    label = reference_components(pairs, len(ranked))
    assert len({label[place] for place in fixed}) < len(fixed)  # new images connect old ones
    site.require_whole()


def test_a_run_on_a_grown_crawl_keeps_what_is_there_unless_it_is_to_be_replaced(site, monkeypatch):
    site("run")
    old, exported = site.files(), kept(site)
    shutil.copytree(site.out, site.root / "old")
    site.grow()
    for words, follows in (
        (["--retry=parts"], "what it exported stays"),
        (["--replace"], "all are judged anew"),
    ):
        said = site("run", "--dry-run", *words)
        assert f"of 25 images: where the crawl has more now, {follows}" in said
    with monkeypatch.context() as patch:
        patch.setattr("curate.pipeline.write_tables", fail)
        site("run", status=2)
    assert site.files() == old
    said = " ".join(site("run").split())
    assert "holds a result of 25 images, and crawl crawl has 39 now: what it exported stays" in said
    made = site.files()
    assert exported.keys() < kept(site).keys()
    assert "nothing to do" in site("run")
    assert site.files() == made
    write_tar(site.data / "crawl" / "00003.tar", {"070.jpg": encoded(picture(70))})
    between = kept(site).keys()
    site("run")
    assert kept(site).keys() - between == {"00003/070"}
    (site.data / "crawl" / "00003.tar").unlink()
    shutil.rmtree(site.out)
    site("run", f"--since={site.root / 'old'}")
    assert site.files() == made
    site("run", "--replace")
    anew = site.files()
    shutil.rmtree(site.out)
    site("run")
    assert site.files() == anew != made


def test_what_was_removed_stays_out_of_a_run_on_a_grown_crawl(site):
    site("run")
    (site.root / "out.txt").write_text("00001/004\n")
    site("remove", site.out, "--list", site.root / "out.txt", "--kind=key", f"--work={site.work}")
    site.grow()
    site("run")
    assert site.rows()["00001/004"]["reason"] == "sha256 is on the list removed"
    assert site.json("run.json")["removed"][0]["images"] == 1
    site.require_whole()


def test_another_drift_is_no_other_result(site):
    site("run")
    made = site.files()
    assert "nothing to do" in site("run", "--set=cluster.drift=9")
    assert site.files() == made
    site.grow()
    site("update", site.out, "--set=cluster.drift=9")
    assert site.json("run.json")["clusters"]["drift"] == 9
    assert site.json("run.json")["clusters"]["kept"]


def test_an_update_says_in_a_dry_run_which_thresholds_it_keeps(site):
    site("run", "--set=dedup.threshold=auto", "--set=retrieve.threshold=auto")
    before = site.json("reports/funnel.json")["thresholds"]
    said = site("update", site.out, "--dry-run")
    for name in ("dedup", "retrieve"):
        assert f"threshold {before[name]['value']} (inclusive, kept" in said
    assert "measured in the run" not in said
