"""How both command lines are called and help, and how they fail: in one line, with a telling exit status."""

from __future__ import annotations

import atexit
import os
import shlex
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from shared.errors import LvdError
from shared.progress import WIDTH
from shared.storage.remote import is_remote

DEBUG = "lvd.debug"
"""In what a command notes for itself: whether tracebacks are asked for."""
STOPPED = 130
"""The exit status after Ctrl-C."""
STOP_AT_EOF = "LVD_STOP_AT_EOF"
"""Set in the environment of a command whose stdin is a pipe that ends when its parent dies."""


def called(program: str) -> str:
    """Return what calls `lvd-curate` or `lvd-train` from this folder, as a shell's word.

    `.venv/bin/lvd-curate` where this folder holds the environment, else the name alone: it stands on
    pages that are sent to others, so no path of this machine is in it.
    """
    path = Path(sys.prefix) / "bin" / program
    if path.is_relative_to(Path.cwd()):
        return shlex.quote(str(path.relative_to(Path.cwd())))
    return program


class Commands(click.Group):
    """A group of commands, called as `prog`, that turns errors of the user into one line.

    Help is as wide as everything else, and lists the commands in the order of their definition, by
    section where they have one. The exit status is 2 for an LvdError and 130 for Ctrl-C. Every
    command takes `--debug`, with which the traceback comes before that line.
    """

    def __init__(self, *args: Any, prog: str = "", **kwargs: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}
        super().__init__(*args, context_settings=settings, **kwargs)
        self.prog = prog
        self.sections: dict[str, list[str]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a program, which after Ctrl-C does not wait for the interpreter's own end."""
        try:
            return self.main(*args, **kwargs)
        except SystemExit as ended:
            if ended.code == STOPPED:
                _end_at_once()
            raise

    def add_section(self, title: str, *commands: click.Command) -> None:
        """Add commands that the help lists together, under a title."""
        self.sections[title] = [str(command.name) for command in commands]
        for command in commands:
            self.add_command(command)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, with what each is for."""
        listed = {name for names in self.sections.values() for name in names}
        rest = [name for name in self.commands if name not in listed]
        for title, names in {**self.sections, "Also": rest}.items():
            room = formatter.width - 6 - max(map(len, self.commands))
            rows = [(name, self.commands[name].get_short_help_str(room)) for name in names]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def add_command(self, command: click.Command, name: str | None = None) -> None:
        """Add a command, with the option `--debug`."""
        if not any(param.name == "debug" for param in command.params):
            command.params.append(_debug_option())
        super().add_command(command, name)

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
            _trace(context)
            click.echo(f"{self.prog}: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt as stopped:
            _trace(context)
            safe = "what was finished is safe: run the same command again to go on"
            click.echo(f"{self.prog}: stopped; {str(stopped) or safe}", err=True)
            sys.exit(STOPPED)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what lets a shell complete commands, options and paths.

    It completes the command as it is found on PATH: activate .venv, or add .venv/bin to PATH.

    \b
    eval "$(lvd-curate completion bash)"      in ~/.bashrc; zsh likewise in ~/.zshrc
    lvd-train completion fish | source        in ~/.config/fish/config.fish
    """
    prog = context.find_root().command.prog  # type: ignore[attr-defined]
    variable = f"_{prog.replace('-', '_')}_COMPLETE".upper()
    made = get_completion_class(shell)
    assert made is not None  # click has these three
    click.echo(made(context.find_root().command, {}, prog, variable).source())


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_note_debug,
        help="Show where an error comes from, before its line.",
    )


def _note_debug(context: click.Context, _: click.Parameter, is_set: bool) -> None:
    if is_set:
        context.find_root().meta[DEBUG] = True


def _trace(context: click.Context) -> None:
    """Show the traceback of the error that is being handled, if that is asked for."""
    if context.find_root().meta.get(DEBUG):
        traceback.print_exc()


def _end_at_once() -> None:
    """End the process as it would end, but for taking down modules: seconds where torch is loaded."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads it
            stream.flush()
    os._exit(STOPPED)


class LocalFolder(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A path of this machine; a URL is refused in one line."""

    name = "path"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Return the path."""
        if isinstance(value, str) and is_remote(value):
            return self.convert_url(value, param, ctx)
        return Path(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Let the shell complete paths."""
        return [CompletionItem(incomplete, type="file")]

    def convert_url(
        self, url: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Return what a URL stands for."""
        said = param.human_readable_name if isinstance(param, click.Argument) else "this option"
        if isinstance(param, click.Option):
            said = param.opts[0]
        command = f"{ctx.info_name}: " if ctx is not None else ""
        raise LvdError(
            f"{command}{said} {url}: only the --work, --out and --since of lvd-curate run may be URLs: name "
            "a folder of this machine, with a copy of what is there"
        )


def _stop_at_eof() -> None:
    """Send this process SIGTERM when its stdin ends: nobody waits for it any more."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
