"""How both command lines help, and how they fail: in one line, with a telling exit status."""

from __future__ import annotations

import sys
from typing import Any

import click

from shared.errors import LvdError
from shared.progress import WIDTH


class Commands(click.Group):
    """A group of commands, called as `prog`, that turns errors of the user into one line.

    Help is as wide as everything else, and lists the commands in the order of their definition. The
    exit status is 2 for an LvdError and 130 for Ctrl-C.
    """

    def __init__(self, *args: Any, prog: str = "", **kwargs: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}
        super().__init__(*args, context_settings=settings, **kwargs)
        self._prog = prog

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)

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
