"""The paper's pipeline, as it ships, end to end on made-up pictures in place of its datasets."""

import json
from pathlib import Path

import pyarrow.parquet as pq
from click.testing import CliRunner
from pictures import encoded, picture, write_tar

from curate.cli import main
from shared.config import load_yaml

SHIPPED = Path(__file__).parents[2] / "pipelines.yaml"
LARGE = {"imagenet22k": 4, "imagenet1k": 32, "gldv2": 4}
"""Seeds of over a million images, and how many of the crawl each of them asks for."""


def test_lvd142m_runs_scaled_to_a_few_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seeds = load_yaml(SHIPPED)["pipelines"]["lvd142m"]["seeds"]
    assert len(seeds) == len(LARGE) + 1 + 2 + 19
    write_tar(
        tmp_path / "crawl" / "00000.tar",
        {f"{number:03d}.jpg": encoded(picture(number)) for number in range(12)},
    )
    places = [f"--set=datasets.crawl.path={tmp_path}/crawl/*.tar"]
    for place, name in enumerate(seeds):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(2 if name in LARGE else 1):
            image = picture(20 + (place + number) % 10)
            (folder / f"{number}.jpg").write_bytes(encoded(image))
        places.append(f"--set=datasets.{name}.path={folder}")
    words = [
        *("--pipeline=lvd142m", f"--config={SHIPPED}", f"--out={tmp_path}/out"),
        *(f"--work={tmp_path}/work", "--executor=inline", *places),
        *("--set=dedup.embedder=descriptor", "--set=retrieve.embedder=descriptor"),
        *("--set=dedup.threshold=0.95", "--set=report.pictures=false"),
        # a million, scaled to one image, and more than 3 images of a cluster to more than none
        *("--set=retrieve.large_seed=1", "--set=retrieve.cluster.more_than=0"),
        *("--set=retrieve.cluster.clusters=6", "--set=retrieve.cluster.images=1"),
        "--set=seeds.imagenet1k.knn.neighbours=3",
    ]
    dry = CliRunner().invoke(main, ["run", *words, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    lines = [line.split()[1] for line in dry.output.splitlines() if line.startswith("retrieve ")]
    assert lines == [f"{name}:" for name in sorted(seeds)]
    some = [*LARGE, "mapillary", "amstertime-new", "met"]  # of all 25 it takes long
    result = CliRunner().invoke(main, ["run", *words, *(f"--seed={name}" for name in some)])
    assert result.exit_code == 0, result.output
    funnel = json.loads((tmp_path / "out" / "reports" / "funnel.json").read_text())
    assert list(funnel["seeds"]) == sorted(some)
    for name, told in funnel["seeds"].items():
        if name == "mapillary":
            assert (told["strategy"], told["retrieved"]) == ("none", 0)
            continue
        assert told["strategy"] == ("knn" if name in LARGE else "cluster")
        most = {"imagenet1k": 2 * 3, "met": 1, "amstertime-new": 1}.get(name, 2 * 4)
        assert 1 <= told["retrieved"] <= most
    own = pq.read_table(tmp_path / "out" / "reports" / "seed_images.parquet").to_pylist()
    assert {row["seed"] for row in own} == {"imagenet22k", "gldv2", "mapillary"}
    images = pq.read_table(tmp_path / "out" / "reports" / "images.parquet").to_pylist()
    kept = [row for row in images if row["decision"] == "kept"]
    assert len(kept) == funnel["decisions"]["kept"]
    assert all(row["seeds"] for row in kept)
    for name, told in funnel["seeds"].items():
        assert sum(name in row["seeds"] for row in kept) == told["retrieved"]


def test_lvd142m_asks_for_what_the_paper_says():
    pipeline = load_yaml(SHIPPED)["pipelines"]["lvd142m"]
    own = {name: settings or {} for name, settings in pipeline["seeds"].items()}
    assert {name: s["knn"]["neighbours"] for name, s in own.items() if "knn" in s} == LARGE
    as_they_are = [name for name, settings in own.items() if settings.get("include")]
    assert as_they_are == ["imagenet22k", "gldv2", "mapillary"]
    assert own["mapillary"]["strategy"] == "none"
    assert (pipeline["dedup"]["threshold"], pipeline["dedup"]["groups"]) == (0.6, "components")
    assert pipeline["dedup"]["hash"] == "pca"
    assert pipeline["embed"]["once"] == "hash"  # the paper's order
    assert pipeline["holdout"]["threshold"] == 0.45
    assert pipeline["retrieve"]["strategy"] == "auto"
    assert pipeline["retrieve"]["cluster"]["clusters"] == 100_000
