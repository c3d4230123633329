"""Stand-ins for the functions of units that die or fail in a Ray worker, for the tests."""

import errno
import importlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sabotaged:
    """Calls `module.name`, and then does harm for as long as `fuse` is there."""

    module: str
    name: str
    fuse: Path

    def __call__(self, *args, out):
        result = getattr(importlib.import_module(self.module), self.name)(*args, out=out)
        if self.fuse.exists():
            self.harm(out)
        return result

    def harm(self, out: Path) -> None:
        raise NotImplementedError


class Killed(Sabotaged):
    """Kills its own process, once, when the files are written and nothing is committed."""

    def harm(self, out: Path) -> None:
        self.fuse.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


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
    monkeypatch.setattr(importlib.import_module(module), name, kind(module, name, fuse))
    return fuse
