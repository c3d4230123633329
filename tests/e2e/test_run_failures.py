"""Storage that fails: for a moment, for good, or in one part alone, and what a run makes of it."""

import json
import shutil

import pytest
from curated_site import leftovers, result, units
from failing_storage import FATAL, TRANSIENT, Rule, calls, failing, script

import curate.plan


@pytest.fixture
def fail(tmp_path, monkeypatch):
    """Return what makes `failing://` fail by some rules, or none; it returns their folder."""

    def write(*rules: Rule):
        for name, value in script(tmp_path / "script", *rules).items():
            monkeypatch.setenv(name, value)
        return tmp_path / "script"

    return write


@pytest.fixture
def vanish(monkeypatch):
    """Return what moves a path away when a run has listed its datasets, and puts it back."""

    def away(path):
        aside = path.with_name("elsewhere")
        original = curate.plan.pinned

        def rename(plan):
            path.rename(aside)
            return original(plan)

        monkeypatch.setattr(curate.plan, "pinned", rename)

        def back():
            monkeypatch.setattr(curate.plan, "pinned", original)
            aside.rename(path)

        return back

    return away


def behind(path, dataset="crawl"):
    """Return the words that read a dataset through `failing://`."""
    return f"--set=datasets.{dataset}.path={failing(path)}"


def funnel(site):
    return json.loads((site.root / "out/reports/funnel.json").read_text())


def corrupt(site):
    """Return how many rows of the committed facts have a problem."""
    facts = [
        json.loads(path.read_text())["result"] for path in site.work.glob("facts/*/*/unit.json")
    ]
    return sum(each["corrupt"] for each in facts)


def undisturbed_result(undisturbed):
    return result(undisturbed.root / "out", undisturbed.data)


def test_storage_that_refuses_is_one_line_and_the_same_command_finishes_when_it_is_mended(
    site, undisturbed, fail
):
    words = behind(site.data / "crawl")
    for way in FATAL:
        fail(Rule("read", way, "*/00001.tar"))
        line = site.run(words, status=2).strip().splitlines()[-1]
        assert line.startswith("lvd-curate: ")
        assert "00001" in line
        assert not (site.root / "out").exists()
        assert corrupt(site) == 0
    fail()
    site.run(words)
    made = result(site.root / "out", "failing://", site.data)
    assert made == undisturbed_result(undisturbed)
    assert leftovers(site) == []


def test_storage_that_fails_for_a_moment_changes_nothing(site, undisturbed, fail):
    rules = [Rule("read", way, f"*/0000{n}.*", times=2) for n, way in enumerate(TRANSIENT)]
    rules += [Rule("open", "throttled", "*/00002.tar.gz", times=3)]
    rules += [Rule("info", "timed out", times=2), Rule("list", "lost", times=2)]
    folder = fail(*rules)
    site.run(behind(site.data / "crawl"))
    made = result(site.root / "out", "failing://", site.data)
    assert made == undisturbed_result(undisturbed)
    met = calls(folder)
    assert all(met[str(number)] > rule.times for number, rule in enumerate(rules))


def test_a_crawl_that_vanishes_after_it_was_listed_is_one_line(site, undisturbed, vanish, tmp_path):
    shutil.copytree(site.data / "crawl", tmp_path / "crawl")
    words = f"--set=datasets.crawl.path={tmp_path / 'crawl'}"
    for gone in ("crawl", "crawl/00003.tar", "crawl/00003.parquet"):
        back = vanish(tmp_path / gone)
        line = site.run(words, status=2).strip().splitlines()[-1]
        assert "is not there (any more)" in line
        assert gone in line
        assert not (site.root / "out").exists()
        back()
    site.run(words)
    assert result(site.root / "out", tmp_path, site.data) == undisturbed_result(undisturbed)
    assert funnel(site)["decisions"] == funnel(undisturbed)["decisions"]


def test_an_image_file_that_vanishes_after_it_was_listed_is_no_corrupt_image(
    site, vanish, tmp_path
):
    shutil.copytree(site.data / "animals", tmp_path / "pictures")
    words = ("--crawl", str(tmp_path / "pictures"), "--set=filters=[]")
    for gone in ("pictures", "pictures/kind0/102.jpg"):
        back = vanish(tmp_path / gone)
        assert "is not there (any more)" in site.run(*words, status=2).strip().splitlines()[-1]
        assert corrupt(site) == 0
        back()
    site.run(*words)
    assert funnel(site)["images"] == 8
    assert "corrupt" not in {name for name, n in funnel(site)["decisions"].items() if n}


def test_a_part_that_fails_for_its_own_reasons_is_set_aside_until_it_is_retried(
    site, undisturbed, fail
):
    words = behind(site.data / "crawl")
    fail(Rule("read", "confused", "*/00002.tar.gz"))
    said = site.run(words, status=3)
    assert "1 parts were set aside, as 00002" in said.splitlines()[-1]
    assert "cannot make sense of" in said
    assert funnel(site)["set_aside"] == ["00002"]
    [problem] = funnel(site)["problems"]
    assert "00002: set aside: embed failed on " in problem
    before = {stage: units(site, stage) for stage in ("facts", "vectors", "scores")}

    folder = fail(Rule("read", "confused", "*.tar*"))
    assert "nothing to do" in site.run(words, status=3)
    assert calls(folder) == {}

    fail()
    assert "trying 1 parts" in site.run(words, "--retry=parts")
    for stage, there in before.items():
        after = units(site, stage)
        assert there.items() <= after.items()
        assert len(after) == len(there) + 1
    made = result(site.root / "out", "failing://", site.data)
    assert made == undisturbed_result(undisturbed)
    assert leftovers(site) == []


def test_the_first_part_of_a_crawl_is_set_aside_as_any_other(site, fail):
    fail(Rule("read", "confused", "*/00000.tar"))
    site.run(behind(site.data / "crawl"), status=3)
    assert funnel(site)["set_aside"] == ["00000"]


def test_a_failure_between_units_is_one_line_with_stage_and_trace(site, fail, monkeypatch):
    monkeypatch.setattr("curate.export.shards.needs_spill", lambda part: part.moon)
    line = site.run(status=2).strip().splitlines()[-1]
    assert line.startswith("lvd-curate: export failed: AttributeError: ")
    assert "trace: " in line


@pytest.mark.parametrize(("role", "dataset"), [("seed", "animals"), ("holdout", "exam")])
def test_a_part_of_a_seed_or_a_holdout_that_fails_is_one_line(site, fail, role, dataset):
    fail(Rule("read", "confused", f"*/{dataset}/*"))
    line = site.run(behind(site.data / dataset, dataset), status=2).strip().splitlines()[-1]
    assert f"{role} {dataset}: embed failed on folder-" in line
    assert "mend or leave out that part" in line
