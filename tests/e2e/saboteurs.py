"""Stand-ins for the functions of units that die or fail in a Ray worker, for the tests."""

import contextlib
import errno
import importlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

ORIGINALS = {}
"""What saboteurs of this process stand in for; workers find it by its name."""


@dataclass(frozen=True)
class Sabotaged:
    """Calls `module.name`, and then does harm for as long as `fuse` is there."""

    module: str
    name: str
    fuse: Path

    def __call__(self, *args, **where):
        module = importlib.import_module(self.module)
        original = ORIGINALS.get((self.module, self.name)) or getattr(module, self.name)
        result = original(*args, **where)
        if self.fuse.exists():
            self.harm(next(iter(where.values())))
        return result

    def harm(self, out: Path) -> None:
        raise NotImplementedError


class Killed(Sabotaged):
    """Kills its own process, once, when the files are written and nothing is committed."""

    def harm(self, out: Path) -> None:
        self.fuse.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class NodeKilled(Sabotaged):
    """Kills, once, the Ray node that it runs on, and then goes on until its process is ended."""

    def __call__(self, *args, **where):
        with contextlib.suppress(FileNotFoundError):
            self.fuse.unlink()
            os.kill(os.getppid(), signal.SIGKILL)  # the raylet, which takes its workers along
        return super().__call__(*args, **where)


class Raising(Sabotaged):
    """Raises what nobody foresaw."""

    def harm(self, out: Path) -> None:
        raise ValueError("the moon is full\nand other details")


class DiskFull(Sabotaged):
    """Finds the disk full at its last file."""

    def harm(self, out: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(out))


def sabotage(monkeypatch, kind: type[Sabotaged], module: str, name: str, fuse: Path) -> Path:
    """Put a saboteur in the place of `module.name`, as the driver sees it; return its fuse."""
    fuse.touch()
    original = getattr(importlib.import_module(module), name)
    monkeypatch.setitem(ORIGINALS, (module, name), original)
    monkeypatch.setattr(importlib.import_module(module), name, kind(module, name, fuse))
    return fuse
