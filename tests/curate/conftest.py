"""One small run, in this process, that the tests of what reads a result or a work folder copy."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from growing_crawl import Site
from pictures import encoded, picture, write_tar

from curate.cli import main

CONFIG = """
datasets:
  crawl: {path: ROOT/crawl}
  seed: {path: ROOT/seed}
  other: {path: ROOT/other}
  held: {path: ROOT/held}
embedders:
  descriptor: {kind: descriptor}
pipelines:
  default:
    crawl: crawl
    seed: seed
    holdouts: [held]
    embedder: descriptor
    filters: [{column: nsfw, max: 0.5}]
    calibrate: {originals: 8, crawl_sample: 8}
    cluster: {clusters: 2}
    dedup: {threshold: 0.95}
    retrieve: {threshold: -1}
    export: {shard_size: 8}
"""


@dataclass(frozen=True)
class SmallRun:
    """Two tars, two seeds and a holdout below `data`; `work`, and `out` of a finished run."""

    data: Path
    root: Path

    @property
    def work(self) -> Path:
        """The work folder."""
        return self.root / "work"

    @property
    def out(self) -> Path:
        """The result."""
        return self.root / "out"

    def __call__(self, command: str, *words: str) -> tuple[int, list[str]]:
        """Return the status of a command, and the lines that it says."""
        asked = [command, *map(str, words)]
        if command == "run":
            asked += ["--executor=inline", f"--config={self.data / 'pipelines.yaml'}"]
        if command in ("run", "gc") and not any(word.startswith("--work") for word in asked):
            asked.append(f"--work={self.work}")
        result = CliRunner().invoke(main, asked)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output.splitlines()

    def run(self, *words: str) -> list[str]:
        """Run the pipeline into `out`, which must succeed."""
        status, said = self("run", f"--out={self.out}", *words)
        assert status == 0, said
        return said


def draw(root: Path) -> None:
    """Draw the data of a `SmallRun`."""
    for part in range(2):
        members = {}
        for number in range(10 * part, 10 * part + 10):
            members[f"{number:03d}.jpg"] = encoded(picture(number))
            members[f"{number:03d}.json"] = json.dumps({"nsfw": 0.1}).encode()
        write_tar(root / "crawl" / f"{part:05d}.tar", members)
    for name, numbers in {"seed": range(20, 24), "other": range(30, 33), "held": [3]}.items():
        (root / name).mkdir()
        for number in numbers:
            (root / name / f"{number}.jpg").write_bytes(encoded(picture(number)))
    (root / "pipelines.yaml").write_text(CONFIG.replace("ROOT", str(root)))


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory):
    """The run that is copied."""
    root = tmp_path_factory.mktemp("small run")
    draw(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)  # `runs/curate/latest` belongs to the working folder
        run = SmallRun(root / "data", root)
        run.run()
    return run


@pytest.fixture
def small_run(finished_once, tmp_path, monkeypatch):
    """A copy of a finished run, to be damaged and gone on with."""
    monkeypatch.chdir(tmp_path)
    for name in ("work", "out"):
        shutil.copytree(finished_once.root / name, tmp_path / name, copy_function=shutil.copy2)
    return SmallRun(finished_once.data, tmp_path)


@pytest.fixture(scope="session")
def grown_work(tmp_path_factory):
    """A work folder that holds the vectors and the calibration of all that `growing_crawl` has."""
    with pytest.MonkeyPatch.context() as patch:
        site = Site(tmp_path_factory.mktemp("computed"), patch)
        site("run")
        site.grow()
        site("update", site.out)
    return site.work
