"""The command line: `benchmarks/gpu.sh` starts it."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from benchmarks.gpu.preflight import preflight
from benchmarks.gpu.report import JSON, TABLE, Report
from benchmarks.gpu.runner import run_sections
from benchmarks.gpu.section import ROOT, Context
from benchmarks.gpu.sections import SECTIONS, chosen

LOG = "gpu.log"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return what `run_sections` does, or 2 for a wrong call and missing packages."""
    began = monotonic()
    options = _parse(arguments)
    problem = preflight(ROOT / "constraints.txt") or _wrong(options)
    if problem:
        print(f"gpu.sh: {problem}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sections = chosen(SECTIONS, options.only, quick=options.quick)
    about = {"minutes": options.minutes, "device": options.device, "quick": options.quick}
    report = Report(options.out, about, [section.name for section in sections])
    log = options.out.resolve() / LOG
    log.write_bytes(b"")
    with tempfile.TemporaryDirectory(prefix="lvd-gpu-") as scratch:
        context = Context(options.device, options.quick, Path(scratch))
        until = began + 60 * options.minutes
        status = run_sections(sections, context, report, until=until, log=log, say=_say)
    print(f"\n{options.out / JSON} and {options.out / TABLE}; what the sections printed: {log}")
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu.sh", description="Measure both stages on one card.")
    parser.add_argument("--out", type=Path, required=True, help="where gpu.json and gpu.md go")
    parser.add_argument("--minutes", type=float, default=6, help="after which it ends (6)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: nothing is measured")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="some sections, by name")
    return parser.parse_args(arguments)


def _wrong(options: argparse.Namespace) -> str | None:
    if options.device == "cpu" and not options.quick:
        return "--device cpu only shows that everything runs: add --quick"
    names = [section.name for section in SECTIONS]
    unknown = [name for name in options.only or () if name not in names]
    return f"no section {unknown[0]!r}: there are {', '.join(names)}" if unknown else None


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
