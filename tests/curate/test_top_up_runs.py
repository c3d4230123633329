"""`top_up` of a pipeline: of what the seeds retrieve, what adds most to what is held."""

import shutil

import numpy as np
import pytest
from growing_crawl import OWN, Site

from curate.catalogue.collection import Collection
from curate.written_cosine import rounded_down


@pytest.fixture
def site(tmp_path, monkeypatch, grown_work):
    shutil.copytree(grown_work, tmp_path / "work")
    return Site(tmp_path, monkeypatch)


def vectors(site, role):
    """Return the stored vectors of a dataset of the result, unit in float64, by key."""
    content = site.json("run.json")["datasets"][role]["content"]
    data = Collection(site.work / "catalogue" / content / "all")
    stored = data.vectors(data.open_by_key).astype(np.float64)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    return dict(zip(data.keys(data.open_by_key), stored, strict=True))


def pick(candidates, held, count):
    """Return the keys that greedy k-centre picks, each with its cosine with all that was there before."""
    known, picked = list(held), {}
    for _ in range(count):
        left = {key: vector for key, vector in candidates.items() if key not in picked}
        nearest = {key: max(vector @ other for other in known) for key, vector in left.items()}
        key = min(nearest, key=nearest.__getitem__)
        picked[key] = nearest[key]
        known.append(left[key])
    return picked


def decided(site, *decisions):
    return {key: row for key, row in site.rows().items() if row["decision"] in decisions}


def test_what_is_kept_is_what_greedy_k_centre_picks(site):
    site("run", "--set=top_up={target: 9, held: own}")
    kept, over = decided(site, "kept"), decided(site, "over_budget")
    crawl = vectors(site, "crawl")
    candidates = {key: crawl[key] for key in sorted(kept | over)}
    expected = pick(candidates, vectors(site, "held").values(), 9)
    found = {key: row["top_up_similarity"] for key, row in kept.items()}
    assert sorted(found, key=found.__getitem__) == list(expected)
    assert found == pytest.approx(expected, abs=1e-6)
    assert {row["reason"] for row in over.values()} == {
        "top_up takes 9 of 24 images, each no more similar to what was held or taken before it than "
        "this one"
    }
    assert all(row["top_up_similarity"] is None for row in over.values())
    told = site.json("reports/funnel.json")["top_up"]
    ends = [found[key] for key in list(expected)[:: len(expected) - 1]]
    assert told == {"target": 9, "held": 2, "retrieved": 24, "kept": 9, "similarity": ends}
    assert f"cosine {rounded_down(ends[-1])} with the nearest" in site(
        "explain", site.out, list(expected)[-1]
    )
    assert "| held | own | 2 |" in (site.out / "datasheet.md").read_text()
    site.require_whole()


@pytest.mark.parametrize("written", ["shards", "list"])
def test_an_earlier_result_can_be_held_and_a_copy_of_it_adds_least(site, written):
    site("run", "--crawl", site.data / "crawl" / "00001.tar", f"--set=export.format={written}")
    assert (site.out / "shards").exists() == (written == "shards")
    old = decided(site, "kept")
    site.out.rename(site.root / "old")
    said = site("run", f"--set=top_up={{target: 0.5, held: {site.root / 'old'}}}", "--dry-run")
    assert f"top-up     0.5 of what is retrieved, beside {site.root / 'old'}" in said
    site("run", f"--set=top_up={{target: 0.5, held: {site.root / 'old'}}}")
    kept = decided(site, "kept")
    assert len(kept) == 12
    assert site.json("reports/funnel.json")["top_up"]["held"] == len(old) == 12
    assert {row["sha256"] for row in kept.values()}.isdisjoint(
        row["sha256"] for row in old.values()
    )


def test_an_update_takes_what_is_there_for_held(site):
    site("run", "--set=top_up.target=9")
    exported = decided(site, "kept")
    assert [row["top_up_similarity"] for row in exported.values()].count(None) == 1  # the first
    site.grow()
    site("update", site.out)
    assert decided(site, "kept").keys() == exported.keys()
    site("run", f"--since={site.out}", "--replace", "--set=top_up.target=13")
    kept, crawl = decided(site, "kept"), vectors(site, "crawl")
    candidates = {key: crawl[key] for key in sorted(decided(site, "over_budget") | kept)}
    held = [candidates.pop(key) for key in exported]
    assert kept.keys() == exported.keys() | pick(candidates, held, 4).keys()


def test_images_of_included_seeds_are_held_and_what_is_removed_is_counted(site):
    site("run", *OWN, "--set=top_up.target=99")
    told = site.json("reports/funnel.json")
    assert told["top_up"]["held"] == 2
    assert told["top_up"]["kept"] == told["top_up"]["retrieved"] == 24
    assert any("top_up.target asks for 99 images" in line for line in told["problems"])
    (site.root / "out.txt").write_text("00001/004\n")
    site("remove", site.out, "--list", site.root / "out.txt", "--kind=key", f"--work={site.work}")
    assert site.json("reports/funnel.json")["top_up"]["kept"] == 23
    assert site.rows()["00001/004"]["top_up_similarity"] is None


def test_settings_that_cannot_be_are_one_line(site):
    for words, said in (
        (["--set=top_up.held=own"], "set top_up.target"),
        (["--set=top_up.target=5", "--set=balance.target=5"], "exclude each other"),
        (["--set=top_up={target: 5, held: nothing}"], "no dataset 'nothing'"),
    ):
        assert said in " ".join(site("run", *words, status=2).split())
