"""What a user gets wrong is said in one line, within a blink, before anything heavy is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

CASES = {
    "unknown dataset": (["--seed=animal"], ["no dataset 'animal'", "did you mean 'animals'"]),
    "unknown crawl": (["--crawl=crawll"], ["no dataset 'crawll'", "did you mean 'crawl'"]),
    "no such path": (["--crawl=DATA/none/*.tar"], ["DATA/none"]),
    "missing data": (["--seed=missing"], ["'missing'", "DATA/nowhere", "pipelines.yaml"]),
    "unknown pipeline": (["--pipeline=defualt"], ["no pipeline 'defualt'", "'default'"]),
    "unknown embedder": (["--embedder=descriptr"], ["no embedder 'descriptr'", "'descriptor'"]),
    "no model folder": (["--embedder=DATA/crawl"], ["config.json"]),
    "unknown setting": (["--set=dedup.treshold=0.9"], ["dedup.treshold", "'threshold'"]),
    "unknown section": (["--set=dedupe.threshold=0.9"], ["dedupe", "'dedup'"]),
    "wrong type": (["--set=export.shard_size=many"], ["export.shard_size", "many"]),
    "impossible value": (["--set=export.shard_size=0"], ["export.shard_size", "0"]),
    "impossible choice": (["--set=dedup.groups=gredy"], ["dedup.groups", "'greedy'"]),
    "impossible format": (["--set=quality.formats=[jpg]"], ["quality.formats", "'jpeg'"]),
    "no domain": (["--set=quality.denied_domains=['http://a.org']"], ["quality.denied_domains"]),
    "impossible measure": (["--set=quality.min_entropy=9"], ["quality.min_entropy", "at most 8"]),
    "unknown filter": (["--set=quality.min_pixel=9"], ["quality.min_pixel", "'min_pixels'"]),
    "no equals sign": (["--set=dedup.threshold"], ["dedup.threshold"]),
    "embedder by --set": (["--set=embedder=nope"], ["--set embedder=nope: no embedder"]),
    "seed by --set": (["--set=seed=nope"], ["--set seed=nope: no dataset"]),
    "filter by --set": (["--set=filters=[{column: x}]"], ["--set filters=[{column: x}] is wrong"]),
    "path by --set": (
        ["--set=datasets.crawl.path=/nowhere/x"],
        ["or correct --set datasets.crawl.path=/nowhere/x"],
    ),
    "path that is typed": (["--crawl=/nowhere/x"], ["or name another place"]),
    "no configuration": (["--config=DATA/none.yaml"], ["DATA/none.yaml", "--config"]),
    "out below a file": (["--out=DATA/pipelines.yaml/out"], ["--out", "cannot write"]),
    "work below a file": (["--work=DATA/pipelines.yaml/w"], ["--work", "cannot write"]),
    "out of other settings": (["--set=dedup.threshold=0.9"], ["dedup.threshold", "--replace"]),
}

PROGRAM = """
import json, sys, time
from click.testing import CliRunner
from curate.cli import main
said = {}
for name, words in json.load(sys.stdin).items():
    started = time.process_time()
    result = CliRunner().invoke(main, words)
    said[name] = result.exit_code, result.output, time.process_time() - started
heavy = sorted({"ray", "torch", "timm", "faiss", "matplotlib", "skimage"} & set(sys.modules))
print(json.dumps({"said": said, "heavy": heavy}))
"""


@pytest.fixture(scope="module")
def answers(undisturbed) -> dict:
    """What `lvd-curate run` says of every case, and what it imported to say so."""
    cases = {}
    for name, (words, _) in CASES.items():
        given = [word.replace("DATA", str(undisturbed.data)) for word in words]
        cases[name] = [*undisturbed.arguments(), *given]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_line_that_names_it(case, answers, undisturbed):
    status, said, seconds = answers["said"][case]
    assert status == 2
    assert said.count("\n") == 1, said
    assert said.startswith("lvd-curate: ")
    for words in CASES[case][1]:
        assert words.replace("DATA", str(undisturbed.data)) in said
    assert seconds < 2


def test_mistakes_are_said_before_anything_heavy_is_imported(answers):
    assert answers["heavy"] == []


def test_the_readme_s_seed_without_its_data_is_one_line():
    done = subprocess.run(
        [Path(sys.executable).with_name("lvd-curate"), "run", "--seed", "imagenet22k"],
        cwd=REPOSITORY,
        env={key: value for key, value in os.environ.items() if key != "IMAGENET22K"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "imagenet22k" in done.stderr
    assert "pipelines.yaml" in done.stderr
