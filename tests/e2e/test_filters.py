"""Filters and engine settings that change: what is judged again, and what is not embedded again."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from curated_site import Site, content, result, units
from drawn_crawl import CORRUPT, encoded, wave, write_tar

from curate.cli import main
from curate.embedding.new_vectors import Batches

EMBEDDED = ("facts", "vectors")


def decisions(path):
    return json.loads((path / "reports/funnel.json").read_text())["decisions"]


def low_quality(path):
    """Return the reasons of the images of low quality, by key."""
    table = pq.read_table(path / "reports/images.parquet").to_pylist()
    return {row["key"]: row["reason"] for row in table if row["decision"] == "low_quality"}


WANTED = "--set=filters=[{column: nsfw, max: 0.5}, {column: beauty, min: 3}]"


def says_that_no_image_has_beauty(site):
    line = site.run(WANTED, status=2).strip().splitlines()[-1]
    assert not (site.work / "scores").exists()
    return "'beauty'" in line and "drop the filter" in line


def test_a_column_that_no_image_has_fails_before_anything_is_embedded(site):
    assert says_that_no_image_has_beauty(site)
    assert not (site.work / "vectors").exists()


def test_a_new_filter_column_and_other_threads_do_not_embed_again(site, undisturbed):
    site.run("--set=filters=[]", out="unfiltered")
    assert units(site, "scores") == {}
    before = {stage: units(site, stage) for stage in EMBEDDED}
    assert says_that_no_image_has_beauty(site)
    assert {stage: units(site, stage) for stage in EMBEDDED} == before
    site.run("--set=embed.decode_threads=3")
    assert content(site.root / "out") == content(undisturbed.root / "out")
    site.run("--set=engine.threads=2", "--set=embedders.descriptor.batch_size=7", out="threads")
    assert {stage: units(site, stage) for stage in EMBEDDED} == before
    assert len(units(site, "scores")) == 4


def test_another_limit_of_the_same_column_changes_no_unit_of_a_part(undisturbed):
    before = {stage: units(undisturbed, stage) for stage in (*EMBEDDED, "scores")}
    undisturbed.run("--set=filters=[{column: nsfw, max: 0.95}]", out="lenient")
    assert {stage: units(undisturbed, stage) for stage in before} == before
    strict, lenient = decisions(undisturbed.root / "out"), decisions(undisturbed.root / "lenient")
    assert lenient["unsafe"] < strict["unsafe"]


def test_a_new_part_without_the_column_does_not_stop_a_crawl_that_has_it(undisturbed, tmp_path):
    shutil.copytree(undisturbed.data / "crawl", tmp_path / "crawl")
    write_tar(tmp_path / "crawl" / "00004.tar", {"new.jpg": encoded(wave(60))})
    undisturbed.run(f"--set=datasets.crawl.path={tmp_path / 'crawl'}", out="grown")
    assert sum(decisions(undisturbed.root / "grown").values()) == 55


def test_a_result_does_not_lean_on_units_of_other_settings_which_gc_removes(site):
    site.run(out="first")
    second = "--set=embed.max_pixels=1000000"
    site.run(second, out="second")
    first = json.loads((site.root / "first/used.json").read_text())["used"]
    kept = set(json.loads((site.root / "second/used.json").read_text())["used"])
    said = CliRunner().invoke(main, ["gc", str(site.root / "second"), "--work", str(site.work)])
    assert "were removed" in said.output
    assert not any((site.work / place).exists() for place in first if place not in kept)
    site.run(second, "--set=retrieve.threshold=0.3", out="third")
    assert site.recomputed("third") == {"select", "export", "report"}


def test_a_filter_by_facts_that_is_added_later_changes_no_unit_of_a_part(undisturbed):
    before = {stage: units(undisturbed, stage) for stage in (*EMBEDDED, "scores")}
    quality = "quality={formats: [jpeg], odd_size: 3, denied_domains: [example.org]}"
    undisturbed.run(f"--set={quality}", out="strict")
    assert {stage: units(undisturbed, stage) for stage in before} == before
    reasons = low_quality(undisturbed.root / "strict")
    assert reasons["00002/png"] == "format png is none of jpeg"
    assert reasons["00003/small"] == "shorter side 19 px is below 32"
    assert reasons["00003/long"] == "aspect ratio 16 is above 8"
    assert reasons["00003/wave25"] == "domain example.org is denied by example.org"
    assert decisions(undisturbed.root / "strict")["kept"] == 0


PICTURE = ("brightness_p99", "brightness_p5", "entropy", "sharpness", "colour")


def test_filters_by_the_picture_that_are_added_later_read_once_and_embed_nothing(site, monkeypatch):
    site.run("--set=quality.min_pixels=5000", out="unmeasured")
    assert units(site, "measures") == {}
    images = pq.read_table(site.root / "unmeasured/reports/images.parquet")
    assert all(images[name].null_count == len(images) for name in PICTURE)
    before = {stage: units(site, stage) for stage in EMBEDDED}
    embedded = []  # images of datasets: calibration embeds edits of its own
    monkeypatch.setattr(Batches, "add", lambda *args: embedded.append(args))
    site.run("--set=quality.min_brightness=0.2", out="bright")
    assert len(measures := units(site, "measures")) == 4
    strict = "--set=quality={min_contrast: null, min_entropy: 1, min_sharpness: 9}"
    site.run(strict, out="strict")
    assert units(site, "measures") == measures
    assert {stage: units(site, stage) for stage in EMBEDDED} == before
    assert embedded == []
    assert low_quality(site.root / "strict")["00003/blank"] == (
        "little information: entropy in bits 0 is below 1"
    )
    images = pq.read_table(site.root / "strict/reports/images.parquet").to_pylist()
    without = {row["key"] for row in images if row["entropy"] is None}
    assert without == set(CORRUPT)
    flat = next(row for row in images if row["key"] == "00003/blank")
    assert [flat[name] for name in PICTURE] == pytest.approx([128 / 255, 128 / 255, 0, 0, 0])
    clean = Site(site.root, site.data, site.root / "clean-work")
    monkeypatch.undo()
    clean.run(strict, out="clean")
    assert result(site.root / "clean") == result(site.root / "strict")
