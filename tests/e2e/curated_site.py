"""A place where end-to-end tests run `lvd-curate`, and what they look at afterwards."""

import json
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner
from result_content import content

from curate.cli import main
from curate.report.timings import TIMINGS


@dataclass
class Site:
    """A folder with its data, work and results; runs commands there, in this process."""

    root: Path
    data: Path
    work: Path

    executor: str = "inline"

    def arguments(self, *extra: str, out: str = "out") -> list[str]:
        """Return the words behind `lvd-curate` of a run."""
        where = {"--config": self.data / "pipelines.yaml", "--work": self.work}
        where |= {"--out": self.root / out, "--executor": self.executor}
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
        return {stage["name"] for stage in stages if not stage["cached"]} - {"start Ray"}


def result(out: Path, *places: str | Path) -> dict[str, bytes]:
    """Return `content` but for where the datasets lay, at `places`, and how that was said."""
    files = content(out)
    del files["files.json"]
    for place in places:
        files["run.json"] = files["run.json"].replace(str(place).encode(), b"")
    record = json.loads(files["run.json"])
    del record["options"]
    return files | {"run.json": json.dumps(record).encode()}


def units(site: Site, stage: str) -> dict[str, tuple[int, int]]:
    """Return the committed units of a stage with inode and time, which a recomputation changes."""
    found = (site.work / stage).glob("*/*/unit.json")
    return {
        str(path.parent.relative_to(site.work)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in found
    }


def leftovers(site: Site) -> list[str]:
    """Return what no finished run may leave behind: temporary, partial and replaced files."""
    hidden = [
        path for path in site.root.rglob(".*") if path.suffix != ".lock" and path.name != ".lock"
    ]
    partial = [path for path in site.root.rglob("*.partial")]
    scratch = [path for path in (site.work / "scratch").rglob("*")]
    return sorted(str(path.relative_to(site.root)) for path in hidden + partial + scratch)
