"""One embedder for copies and another for meaning, in one run and in one after another."""

import json

import pyarrow.parquet as pq
import pytest
import yaml
from curated_site import Site, content, units

from curate.embedding.decoder import Decoder
from shared.datasets.dataset import DatasetSettings, list_parts

TWO = ("--set=dedup.embedder=descriptor", "--set=retrieve.embedder=bundled")


@pytest.fixture(scope="module")
def decoded():
    """The keys of the images that were decoded, in no order."""
    keys = []
    original = Decoder.decode

    def decode(self, key, *rest):
        keys.append(key)
        return original(self, key, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "decode", decode)
        yield keys


@pytest.fixture(scope="module")
def at_once(drawn, decoded, tmp_path_factory):
    """A run with both embedders from the start, and what it decoded."""
    root = tmp_path_factory.mktemp("at_once")
    site = Site(root, drawn, root / "work")
    del decoded[:]
    site.run(*TWO)
    return site, sorted(decoded)


def read(site, name, out="out"):
    return json.loads((site.root / out / name).read_text())


def folders(site, stage):
    """Return how many units each address of a stage has."""
    return sorted(len(list(path.glob("*/unit.json"))) for path in (site.work / stage).iterdir())


def test_one_decode_serves_both(at_once):
    site, decoded = at_once
    facts = [
        pq.read_table(path, columns=["width", "sha256"]).to_pylist()
        for path in site.work.glob("facts/*/*/*.parquet")
    ]
    readable = [{row["sha256"] for row in part if row["width"]} for part in facts]
    assert len(decoded) == sum(map(len, readable)) < sum(map(len, facts))


def test_each_has_its_thresholds_and_the_reports_say_both(at_once):
    site, _ = at_once
    run, funnel = read(site, "run.json"), read(site, "reports/funnel.json")
    assert run["embedder"] == "descriptor and bundled"
    assert run["thresholds"] == funnel["thresholds"]
    assert run["thresholds"]["dedup"] == {"value": 0.85, "source": "embedder"}
    assert run["thresholds"]["holdout"]["value"] == 0.85
    assert run["thresholds"]["retrieve"]["source"] == "calibrated"
    assert run["thresholds"]["retrieve"]["value"] != 0.2
    for about in (run, funnel):
        named = {stage: each["name"] for stage, each in about["settings"]["embedders"].items()}
        assert named == {"dedup": "descriptor", "retrieve": "bundled"}
    # the holdout is only compared for copies, the seed only for meaning
    crawled, seed, holdout = 4, len(seed_parts(site, "animals")), len(seed_parts(site, "exam"))
    assert folders(site, "vectors") == sorted([crawled + seed, crawled + holdout])


def seed_parts(site, dataset):
    return list_parts(dataset, DatasetSettings(path=str(site.data / dataset)))


def test_a_second_embedder_that_is_added_later_is_all_that_is_computed(
    site, undisturbed, at_once, decoded
):
    site.run()
    before = {stage: units(site, stage) for stage in ("facts", "scores", "vectors")}
    site.run(*TWO, out="two")
    for stage, there in before.items():
        assert there.items() <= units(site, stage).items()
    made = units(site, "vectors").keys() - before["vectors"].keys()
    assert len({name.split("/")[1] for name in made}) == 1
    assert content(site.root / "two") == content(at_once[0].root / "out")


def test_embedder_on_the_command_line_names_both(site, tmp_path):
    config = yaml.safe_load((site.data / "pipelines.yaml").read_text())
    pipeline = config["pipelines"]["default"]
    pipeline |= {"dedup": {"embedder": "bundled"}, "retrieve": {"embedder": "bundled"}}
    (tmp_path / "pipelines.yaml").write_text(yaml.safe_dump(config))
    site.run("--config", str(tmp_path / "pipelines.yaml"), "--embedder=descriptor")
    run = read(site, "run.json")
    assert run["embedder"] == "descriptor"
    assert {each["name"] for each in run["settings"]["embedders"].values()} == {"descriptor"}
