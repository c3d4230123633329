"""Says how far runs are: finished, at work, or cut off. Takes no lock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curate.execution.monitor import lives
from curate.execution.output import RUN
from curate.execution.session import STATUS, status_file
from curate.plan import PARTIAL
from shared.datasets.folders import describe_folder
from shared.datasets.outputs import WORK_MARKER
from shared.errors import LvdError
from shared.progress import duration, rate
from shared.storage.files import read_json, read_optional


def status(folder: Path) -> str:
    """Return a few lines on the run of an OUT, or on all runs at work on a WORK.

    Raises LvdError where `folder` is neither.
    """
    folder = folder.absolute()
    if (folder / WORK_MARKER).exists():
        return _of_work(folder)
    lines = []
    if not (folder / "reports").exists() and (whose := describe_folder(folder)):
        raise LvdError(f"{folder} is {whose}")
    if (folder / RUN).exists():
        lines.append(_finished(folder))
    if (report := read_optional(status_file(folder))) and lives(report):
        lines += _at_work(report)
    elif (partial := folder.with_name(folder.name + PARTIAL)).exists():
        shards = sum(1 for _ in (partial / "shards").glob("*_stats.json"))
        lines.append(
            f"{partial}: cut off: run the same command to go on; {shards:,} shards are whole"
        )
    elif report:
        lines.append(f"{folder}: cut off: run the same command to go on")
    if not lines:
        raise LvdError(
            f"no run has finished in {folder} or begun to write there: what its stages made is in "
            "--work, and the same command goes on from it"
        )
    return "\n".join(lines)


def runs_at_work(work: Path) -> list[dict[str, Any]]:
    """Return what the runs that are at work on `work` say of themselves."""
    reports = [read_optional(path) for path in sorted((work / STATUS).glob("*.json"))]
    return [report for report in reports if report and lives(report)]


def _of_work(work: Path) -> str:
    lines = [line for report in runs_at_work(work) for line in _at_work(report)]
    return "\n".join(lines) or f"{work}: no run is at work"


def _finished(out: Path) -> str:
    run, funnel = read_json(out / RUN), read_json(out / "reports" / "funnel.json")
    kept = funnel["decisions"]["kept"]
    line = (
        f"{out}: finished: {kept:,} of {funnel['images']:,} images of {run['crawl']} kept "
        f"for {run['seed']}"
    )
    aside = funnel.get("set_aside", [])
    return line + (f"; {len(aside):,} parts set aside (--retry parts)" if aside else "")


def _at_work(report: dict[str, Any]) -> list[str]:
    """Return what a run says of itself: stage, done and total, rate, time left, failures."""
    now = report["updated"]
    done, total = report.get("done"), report.get("total")
    words = [f"{report['stage'] or 'starting'}"]
    if done is not None:
        about = "about " if report.get("is_guess") else ""
        words.append(f"{done:,}{f' of {about}{total:,}' if total is not None else ''} images")
    if report.get("rate"):
        words.append(rate(1, 1 / report["rate"]))
    if report.get("left"):
        words.append(f"{duration(report['left'])} left in this stage")
    words.append(f"{duration(now - report['began'])} since it began")
    words.append(f"{report['failures']:,} units failed" if report["failures"] else "no failures")
    where = report["out"] or "calibration"
    return [
        f"{where}: at work (process {report['pid']} on {report['host']})",
        "  " + ", ".join(words),
    ]
