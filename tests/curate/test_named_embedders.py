"""Which embedder finds copies and which judges meaning, by who names what where."""

from pathlib import Path

import pytest

from curate.plan import options_of
from curate.request import read_request
from shared.embedders.settings import BUNDLED, bundled_settings
from shared.errors import LvdError

SHIPPED = Path(__file__).parents[2] / "pipelines.yaml"
CONFIG = """
datasets:
  images: {path: IMAGES}
embedders:
  one: {kind: timm, model: resnet18}
  two: {kind: timm, model: resnet34}
  three: {kind: timm, model: resnet50}
pipelines:
  silent: {crawl: images, seed: images}
  both: {crawl: images, seed: images, embedder: one}
  meaning: {crawl: images, seed: images, retrieve: {embedder: one}}
  all: {crawl: images, seed: images, embedder: one, dedup: {embedder: two},
        retrieve: {embedder: three}}
"""


def named(config: Path, pipeline: str, *overrides: str, embedder: str | None = None) -> list[str]:
    """Return the names of the embedders for copies and for meaning."""
    request = read_request(
        config,
        pipeline,
        embedder=embedder,
        crawl=None,
        seeds=[],
        holdouts=[],
        overrides=overrides,
    )
    return [request.embedders[stage].name for stage in ("dedup", "retrieve")]


@pytest.fixture
def config(tmp_path) -> Path:
    (tmp_path / "pipelines.yaml").write_text(CONFIG)
    return tmp_path / "pipelines.yaml"


@pytest.mark.parametrize(
    ("pipeline", "overrides", "embedder", "expected"),
    [
        ("silent", [], None, ["bundled-copies", "bundled"]),
        ("silent", [], "one", ["one", "one"]),
        ("silent", ["embedder=one"], None, ["one", "one"]),
        ("silent", ["retrieve.embedder=one"], None, ["bundled-copies", "one"]),
        ("silent", ["dedup={embedder: one}"], None, ["one", "bundled"]),
        ("both", [], None, ["one", "one"]),
        ("both", ["retrieve.embedder=two"], None, ["one", "two"]),
        ("both", ["embedder=null"], None, ["bundled-copies", "bundled"]),
        ("meaning", [], None, ["bundled-copies", "one"]),
        ("meaning", [], "bundled", ["bundled", "bundled"]),
        ("all", [], None, ["two", "three"]),
        ("all", [], "one", ["one", "one"]),
        ("all", ["embedder=bundled-copies"], None, ["bundled-copies", "bundled-copies"]),
        ("all", ["embedder=bundled", "dedup.embedder=one"], None, ["one", "bundled"]),
        ("all", ["embedder=two"], "one", ["one", "one"]),
        ("all", ["retrieve.embedder=null"], None, ["two", "one"]),
        ("all", ["dedup.threshold=0.8"], None, ["two", "three"]),
    ],
)
def test_a_call_counts_more_than_the_file_and_a_stage_more_than_both(
    config, pipeline, overrides, embedder, expected
):
    assert named(config, pipeline, *overrides, embedder=embedder) == expected


def test_the_shipped_pipelines_find_copies_and_judge_meaning_with_models_of_their_own():
    assert named(SHIPPED, "default") == ["bundled-copies", "dinov2-s"]
    assert named(SHIPPED, "default", "retrieve.embedder=bundled") == ["bundled-copies", "bundled"]
    assert named(SHIPPED, "sample") == ["bundled-copies", "bundled"]
    assert named(SHIPPED, "sample", embedder="sscd") == ["sscd", "sscd"]


def test_a_result_knows_the_options_that_decide_it_and_no_others(config):
    """So that it is the same bytes by another number of workers."""
    said = ["report.top_k=3", "engine.workers=1", "export.also=[there]", "engine.threads=2"]
    empty = {"crawl": None, "seeds": [], "holdouts": []}
    request = read_request(config, "all", embedder="one", overrides=said, **empty)
    words = ["--embedder", "one", "--set", "report.top_k=3", "--set", "engine.threads=2"]
    assert options_of(request) == words
    again = read_request(
        config, "all", embedder=None, overrides=["estimate.pairs=5"], options=words, **empty
    )
    assert options_of(again) == [*words, "--set", "estimate.pairs=5"]


def test_a_bundled_model_is_its_entry_where_the_file_has_one_of_its_name(config):
    def settings(name):
        request = read_request(
            config, "silent", embedder=name, crawl=None, seeds=[], holdouts=[], overrides=[]
        )
        return request.embedders["dedup"].settings

    for name in BUNDLED:
        assert settings(name) == bundled_settings(name)
    config.write_text(config.read_text().replace("  two:", "  bundled-copies:"))
    assert settings("bundled-copies").model == "resnet34"


def test_a_wrong_name_is_said_with_where_it_stands_and_the_nearest(config):
    with pytest.raises(LvdError, match=r"--set embedder=bundled-copy: no embedder 'bundled-copy'"):
        named(config, "all", "embedder=bundled-copy")
    with pytest.raises(LvdError, match=r"did you mean 'bundled-copies'\?"):
        named(config, "silent", embedder="bundled_copies")
