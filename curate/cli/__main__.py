"""Lets `python -m curate.cli` stand for `lvd-curate`."""

from curate.cli import main

main(prog_name="lvd-curate")
