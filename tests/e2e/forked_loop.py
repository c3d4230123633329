"""Runs `lvd-curate loop` and its steps in processes that are forked from one that has imported all."""

import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from forked import forked, run_main

MODULES = {"lvd-curate": "curate.cli", "lvd-train": "train.cli"}


def forked_loop(arguments: Sequence[str], log: Path):
    """Run `lvd-curate` with these words in a process of its own: see `forked`."""
    return forked(_run, list(arguments), str(Path.cwd()), log=log)


def _run(arguments: list[str], folder: str) -> None:
    os.chdir(folder)
    subprocess.Popen = ForkedProgram  # type: ignore[misc]
    run_main("curate.cli", arguments)


class ForkedProgram(subprocess.Popen):
    """A program of the project as a child that runs its command where it would be executed.

    It has the pipes, the environment, the process group and the files of an executed one.
    """

    def __init__(
        self, command: Sequence[str], *, env: dict[str, str], pass_fds: Sequence[int], **how: Any
    ) -> None:
        held = [os.dup(fd) for fd in pass_fds]  # those of locks are closed in a fork

        def run_command() -> NoReturn:
            kept = sorted({0, 1, 2, *held})
            for one, other in pairwise([*kept, os.sysconf("SC_OPEN_MAX")]):
                os.closerange(one + 1, other)
            os.environ.clear()
            os.environ.update(env)
            name = Path(command[0]).name
            status: Any = 1
            try:
                import_module(MODULES[name]).main(command[1:], prog_name=name)
            except SystemExit as error:
                status = error.code or 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

        super().__init__(command, env=env, pass_fds=held, preexec_fn=run_command, **how)
        for fd in held:
            os.close(fd)
