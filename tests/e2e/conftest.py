"""One local Ray session, one drawn crawl and one undisturbed run for all end-to-end tests."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from drawn_crawl import make_data

from curate.cli import main

TIMINGS = "timings.json"


@dataclass
class Site:
    """A folder with its data, work and results; runs commands there, in this process."""

    root: Path
    data: Path
    work: Path

    def arguments(self, *extra: str, out: str = "out") -> list[str]:
        """Return the words behind `lvd-curate` of a run."""
        where = {"--config": self.data / "pipelines.yaml", "--work": self.work}
        where["--out"] = self.root / out
        return ["run", *[str(word) for pair in where.items() for word in pair], *extra]

    def run(self, *extra: str, out: str = "out", status: int = 0) -> str:
        """Run, and return all that was said."""
        result = CliRunner().invoke(main, self.arguments(*extra, out=out))
        said = result.output
        assert result.exit_code == status, f"{said}\n{result.exception!r}"
        return said

    def recomputed(self, out: str = "out") -> set[str]:
        """Return the stages that the run in `out` did not find in the work folder."""
        stages = json.loads((self.root / out / TIMINGS).read_text())["stages"]
        return {stage["name"] for stage in stages if not stage["cached"]}


def content(out: Path) -> dict[str, bytes]:
    """Return every file below `out` but the timings."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != TIMINGS}


def leftovers(site: Site) -> list[str]:
    """Return what no finished run may leave behind: temporary, partial and replaced files."""
    hidden = [path for path in site.root.rglob(".*") if path.name != ".lock"]
    partial = [path for path in site.root.rglob("*.partial")]
    scratch = [path for path in (site.work / "scratch").rglob("*")]
    return sorted(str(path.relative_to(site.root)) for path in hidden + partial + scratch)


@pytest.fixture(scope="session")
def ray_session():
    """A real local Ray session of two processors, which engines in this process join."""
    os.environ |= {
        "PYTHONPATH": str(Path(__file__).parent),  # where workers find the saboteurs
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",  # a busy machine would starve them
    }
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """The drawn data, which tests must not change."""
    return make_data(tmp_path_factory.mktemp("drawn"))


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory):
    """`runs/curate/latest` belongs to the working folder: not the repository's, here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        yield


@pytest.fixture(scope="session")
def undisturbed(ray_session, drawn, tmp_path_factory) -> Site:
    """A finished run in `out`, and the work folder that it left."""
    root = tmp_path_factory.mktemp("undisturbed")
    site = Site(root, drawn, root / "work")
    site.run()
    return site


@pytest.fixture
def site(ray_session, drawn, tmp_path) -> Site:
    """The drawn data with a work folder of its own."""
    return Site(tmp_path, drawn, tmp_path / "work")
