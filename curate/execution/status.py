"""Says how far a run is: finished, going on, or cut off."""

from __future__ import annotations

import fcntl
from pathlib import Path

from curate.execution.output import PARTIAL, RUN
from curate.report.tables import read_funnel
from shared.errors import LvdError
from shared.storage import read_json


def status(out: Path) -> str:
    """Return a few lines on the run whose output is `out`. LvdError where there is none."""
    out = out.absolute()
    lines = []
    if (out / RUN).exists():
        run, funnel = read_json(out / RUN), read_funnel(out)
        kept = funnel["decisions"]["kept"]
        lines.append(
            f"{out}: finished: {kept:,} of {funnel['images']:,} images of {run['crawl']} kept "
            f"for {run['seed']}"
        )
    partial = out.with_name(out.name + PARTIAL)
    if partial.exists():
        shards = sum(1 for _ in (partial / "shards").glob("*_stats.json"))
        how = "being written" if _is_locked(out) else "cut off: run the same command to go on"
        lines.append(f"{partial}: {how}; {shards:,} shards are whole")
    elif _is_locked(out):
        lines.append(f"{out}: a run is at work, and has not begun to write shards")
    if not lines:
        raise LvdError(
            f"no run has finished in {out} or begun to write there: what its stages made is in "
            "--work, and the same command goes on from it"
        )
    return "\n".join(lines)


def _is_locked(out: Path) -> bool:
    lock = out.with_name(f".{out.name}.lock")
    if not lock.exists():
        return False
    with lock.open("r") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
