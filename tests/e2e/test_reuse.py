"""What a second run does not do again, and what it does not touch."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from curated_site import Site, content, leftovers, result, units
from drawn_crawl import encoded, make_data, wave, write_tar

from curate.execution import auto
from curate.execution.on_ray import RayExecutor
from curate.execution.output import Output

BEHIND_RETRIEVE = {"select", "export", "report"}


def linked(site: Site, root: Path) -> str:
    """Return the words that put a copy of the crawl, of the same times, in its place."""
    shutil.copytree(site.data / "crawl", root / "crawl")
    return f"--set=datasets.crawl.path={root / 'crawl'}"


def test_a_second_run_does_nothing_says_so_and_starts_no_ray(undisturbed, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.root.rglob("*")}
    monkeypatch.setattr(RayExecutor, "_start", lambda self: pytest.fail("Ray was started"))
    for executor in ("ray", "auto"):
        assert "nothing to do" in replace(undisturbed, executor=executor).run()
    after = {path: path.stat().st_mtime_ns for path in undisturbed.root.rglob("*")}
    work = undisturbed.work
    passing = {undisturbed.root, undisturbed.root / ".out.lock", work / "scratch", work / "status"}
    assert {path for path in before if before[path] != after.get(path)} <= passing
    assert set(after) == set(before)


def test_a_changed_threshold_on_few_images_starts_no_ray_by_default(undisturbed, monkeypatch):
    monkeypatch.setattr(RayExecutor, "_start", lambda self: pytest.fail("Ray was started"))
    monkeypatch.setattr(auto, "SECONDS", 600)  # however slow this machine is
    replace(undisturbed, executor="auto").run("--set=retrieve.threshold=0.45", out="by-auto")
    undisturbed.run("--set=retrieve.threshold=0.45", "--replace", out="inline")
    assert result(undisturbed.root / "by-auto") == result(undisturbed.root / "inline")


def test_a_changed_retrieve_threshold_recomputes_only_what_stands_behind_it(undisturbed):
    undisturbed.run("--set=retrieve.threshold=0.4", out="strict")
    assert undisturbed.recomputed("strict") == BEHIND_RETRIEVE


def test_a_changed_dedup_threshold_leaves_embed_and_cluster_alone(undisturbed):
    undisturbed.run("--set=dedup.threshold=0.95", out="doubled")
    changed = {"dedup", "estimate", "holdout", "retrieve"} | BEHIND_RETRIEVE
    assert undisturbed.recomputed("doubled") == changed


def test_another_seed_uses_the_embedded_and_deduplicated_crawl(undisturbed):
    before = units(undisturbed, "vectors")
    undisturbed.run("--seed=plants", out="plants")
    changed = {"embed", "holdout", "retrieve"}  # it is held against the holdouts
    assert undisturbed.recomputed("plants") == changed | BEHIND_RETRIEVE
    after = units(undisturbed, "vectors")
    assert before.items() <= after.items()
    assert len(set(after) - set(before)) == len(list(undisturbed.data.glob("plants/*/*")))


def test_of_a_crawl_that_grew_only_the_new_shard_is_embedded(undisturbed, tmp_path):
    grown = linked(undisturbed, tmp_path)
    write_tar(tmp_path / "crawl" / "00004.tar", {"new.jpg": encoded(wave(60))})
    before = {stage: units(undisturbed, stage) for stage in ("facts", "scores", "vectors")}
    undisturbed.run(grown, out="grown")
    for stage, there in before.items():
        after = units(undisturbed, stage)
        assert there.items() <= after.items()
        assert len(after) == len(there) + 1


def test_output_is_the_same_to_the_byte_with_one_worker_and_files_made_in_another_order(
    undisturbed, tmp_path
):
    data = make_data(tmp_path / "elsewhere", shuffle=7)
    other = Site(tmp_path, data, tmp_path / "work")
    other.run("--set=engine.workers=1")
    made = result(tmp_path / "out", data)
    assert made == result(undisturbed.root / "out", undisturbed.data)
    assert leftovers(other) == []


def test_an_output_of_other_settings_is_refused_and_swapped_whole_on_demand(undisturbed):
    undisturbed.run(out="mine")
    (undisturbed.root / "mine" / "note.txt").write_text("left here by somebody")
    before = content(undisturbed.root / "mine")
    said = undisturbed.run("--set=retrieve.threshold=0.3", out="mine", status=2)
    assert said.count("\n") == 1
    assert "retrieve.threshold" in said
    assert "--replace" in said
    assert content(undisturbed.root / "mine") == before
    undisturbed.run("--set=retrieve.threshold=0.3", "--replace", out="mine")
    after = content(undisturbed.root / "mine")
    assert "note.txt" not in after
    assert after["run.json"] != before["run.json"]
    assert leftovers(undisturbed) == []


@pytest.mark.parametrize("whole", [True, False])
def test_a_swap_cut_off_between_its_two_renames_is_finished(undisturbed, whole):
    out, partial = undisturbed.root / "swap", undisturbed.root / "swap.partial"
    undisturbed.run(out="swap")
    made = content(out)
    out.rename(partial if whole else undisturbed.root / ".swap.replaced")
    if whole:
        (undisturbed.root / ".swap.replaced").mkdir()
    assert "nothing to do" in undisturbed.run(out="swap")
    assert content(out) == made
    assert leftovers(undisturbed) == []


def test_an_output_with_foreign_files_is_refused(undisturbed):
    for name in ("foreign", "half.partial"):
        (undisturbed.root / name).mkdir()
        (undisturbed.root / name / "thesis.txt").write_text("the only copy")
        said = undisturbed.run(out=name.removesuffix(".partial"), status=2)
        assert said.count("\n") == 1
        assert "no run wrote" in said
        assert (undisturbed.root / name / "thesis.txt").read_text() == "the only copy"
        shutil.rmtree(undisturbed.root / name)


def test_a_neighbour_called_old_is_left_alone(undisturbed):
    old = undisturbed.root / "out.old"
    old.mkdir()
    undisturbed.run()
    assert old.exists()


def test_two_runs_on_one_output_at_once_are_refused(undisturbed):
    with Output(undisturbed.root / "busy", {}, False).locked():
        said = undisturbed.run(out="busy", status=2)
    assert "another run is writing" in said
    assert said.count("\n") == 1


def test_a_dry_run_says_what_is_cached_and_writes_nothing(undisturbed):
    before = set(undisturbed.root.rglob("*"))
    said = undisturbed.run("--dry-run", out="dry")
    assert "4 embedded, 0 to do" in said
    assert set(undisturbed.root.rglob("*")) == before
