"""A file system `failing://` over local files, which fails by a script, in whatever process.

`failing:///path` is the local `/path`. A script (`script`) is a folder that the environment names:
processes that inherit the environment, Ray's workers too, know the file system by an entry point of
fsspec, and count failures together. Nothing waits before it is tried again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import fsspec
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

import shared.storage.failures

SCRIPT = "FAILING_STORAGE"
BLOCK = 1 << 14
"""Bytes of one read inside an opened file."""


class AnswerError(Exception):
    """What a storage library raises for a code and an HTTP status, as botocore's ClientError does."""

    @property
    def response(self) -> dict:
        code, status = self.args
        return {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


WAYS: dict[str, Callable[[str], Exception]] = {
    "throttled": lambda path: AnswerError("SlowDown", 503),
    "too many": lambda path: AnswerError("", 429),
    "timed out": lambda path: TimeoutError(f"no answer on {path}"),
    "lost": lambda path: ConnectionResetError(f"connection reset while reading {path}"),
    "forbidden": lambda path: PermissionError(13, "Permission denied", path),
    "expired": lambda path: AnswerError("ExpiredToken", 400),
    "no credentials": lambda path: AnswerError("InvalidAccessKeyId", 403),
    "missing": lambda path: FileNotFoundError(2, "No such file or directory", path),
    "confused": lambda path: ValueError(f"cannot make sense of {path}"),
}
TRANSIENT = ("throttled", "too many", "timed out", "lost")
FATAL = ("forbidden", "expired", "no credentials", "missing")


@dataclass(frozen=True)
class Rule:
    """Fail in a way of `WAYS`, or with `short` give only half of the bytes."""

    on: Literal["info", "list", "open", "read"]
    way: str
    path: str = "*"
    """A pattern of the paths."""
    skip: int = 0
    """So many calls go well first."""
    times: int | None = None
    """So many calls fail, then they go well again; None: all."""


def script(folder: Path, *rules: Rule) -> dict[str, str]:
    """Write a script, and return the environment of processes that shall fail by it."""
    information = folder / "site" / "failing_storage-0.dist-info"
    information.mkdir(parents=True, exist_ok=True)
    entry = "[fsspec.specs]\nfailing = failing_storage:FailingFileSystem\n"
    (information / "entry_points.txt").write_text(entry)
    (information / "METADATA").write_text("Name: failing_storage\nVersion: 0\n")
    (folder / "rules.json").write_text(json.dumps([asdict(rule) for rule in rules]))
    (folder / "calls.json").write_text("{}")
    roots = [str(information.parent), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {SCRIPT: str(folder), "PYTHONPATH": os.pathsep.join(filter(None, roots))}


def failing(path: Path) -> str:
    """Return the URL of a local path."""
    return f"failing://{path.absolute()}"


def calls(folder: Path) -> dict[str, int]:
    """Return how often each rule (by its number) was met, whether it failed or not."""
    return json.loads((folder / "calls.json").read_text())


class FailingFileSystem(AbstractFileSystem):
    protocol = "failing"
    cachable = False
    local = LocalFileSystem()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        shared.storage.failures._pause = lambda seconds: None

    def info(self, path: str, **_: Any) -> dict:
        path = self._strip_protocol(path)
        self.meet("info", path)
        return self.local.info(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list:
        path = self._strip_protocol(path)
        self.meet("list", path)
        return self.local.ls(path, detail=detail)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        path = self._strip_protocol(path)
        way = self.meet("read", path)
        data = self.local.cat_file(path, start=start, end=end)
        return data[: (len(data) + 1) // 2] if way == "short" else data

    def _open(self, path: str, mode: str = "rb", **_: Any) -> FailingFile:
        self.meet("open", path)
        return FailingFile(self, path, mode, block_size=BLOCK, cache_type="readahead")

    def meet(self, call: str, path: str) -> str:
        """Raise what the script says of this call, or return what else it says."""
        folder = Path(os.environ[SCRIPT])
        for number, rule in enumerate(json.loads((folder / "rules.json").read_text())):
            if rule["on"] != call or not fnmatch(path, rule["path"]):
                continue
            met = self._count(folder, str(number)) - rule["skip"]
            if met > 0 and (rule["times"] is None or met <= rule["times"]):
                if rule["way"] == "short":
                    return "short"
                raise WAYS[rule["way"]](path)
        return ""

    def _count(self, folder: Path, number: str) -> int:
        with FileLock(folder / "calls.lock"):
            counts = calls(folder)
            counts[number] = counts.get(number, 0) + 1
            (folder / "calls.json").write_text(json.dumps(counts))
        return counts[number]


class FailingFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)


fsspec.register_implementation("failing", FailingFileSystem, clobber=True)
