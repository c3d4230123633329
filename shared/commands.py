"""How both command lines fail: in one line, with an exit status that says which way."""

from __future__ import annotations

import sys
from typing import Any

import click

from shared.errors import LvdError


class Commands(click.Group):
    """A group of commands, called as `prog`, that turns errors of the user into one line.

    The exit status is 2 for an LvdError and 130 for Ctrl-C.
    """

    def __init__(self, *args: Any, prog: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prog = prog

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(context)
        except LvdError as error:
            click.echo(f"{self._prog}: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo(f"{self._prog}: stopped; run the same command again to go on", err=True)
            sys.exit(130)
