"""How both command lines help, and how they fail: in one line, with a telling exit status."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import click

from shared.errors import LvdError
from shared.progress import WIDTH
from shared.remote import is_remote

STOP_AT_EOF = "LVD_STOP_AT_EOF"
"""Set in the environment of a command whose stdin is a pipe that ends when its parent dies."""


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
        if STOP_AT_EOF in os.environ:
            Thread(target=_stop_at_eof, daemon=True).start()
        try:
            return super().invoke(context)
        except LvdError as error:
            click.echo(f"{self._prog}: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo(f"{self._prog}: stopped; run the same command again to go on", err=True)
            sys.exit(130)


class LocalFolder(click.ParamType):
    """A path of this machine; a URL is refused in one line."""

    name = "path"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Return the path."""
        if isinstance(value, str) and is_remote(value):
            return self.convert_url(value, param, ctx)
        return Path(value)

    def convert_url(
        self, url: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Return what a URL stands for."""
        said = param.human_readable_name if isinstance(param, click.Argument) else "this option"
        if isinstance(param, click.Option):
            said = param.opts[0]
        command = f"{ctx.info_name}: " if ctx is not None else ""
        raise LvdError(
            f"{command}{said} {url}: only the --work and --out of lvd-curate run may be URLs: name "
            "a folder of this machine, with a copy of what is there"
        )


def _stop_at_eof() -> None:
    """Send this process SIGTERM when its stdin ends: nobody waits for it any more."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
