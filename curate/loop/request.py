"""The request of a loop, the commands that it calls, and the settings that its OUT records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.plan import comparable, default_out
from curate.request import Request, read_request
from shared.config import expand, flat, load_yaml
from shared.errors import LvdError, nearest
from shared.storage.files import read_json, write_json

SETTINGS = "loop.json"
CHECKED = "check.log"
SCORES = ("knn", "knn.log")
"""Files that checking the labels may leave before a loop has begun."""


@dataclass(frozen=True)
class LoopRequest:
    """The options of `lvd-curate loop`."""

    rounds: int
    out: Path
    curation: Request
    """Of the first round, already checked."""
    embedder: str | None
    crawl: str | None
    seeds: Sequence[str]
    holdouts: Sequence[str]
    config: Path
    work: Path
    executor: str
    """For curation."""
    recipe: str
    processes: int
    """For training: one, or as many as torchrun starts."""
    curate_set: Sequence[str]
    train_set: Sequence[str]
    truth: Path | None
    """A CSV with the columns part, member and kind."""
    knn_train: str | None
    knn_test: str | None

    def curate_command(self, out: Path, model: Path | None) -> list[str]:
        """Return the command that curates into `out`; `model`, a folder, judges meaning if given.

        What finds copies stays what was asked for: a model trained for meaning is worse at that.
        """
        named = {"--embedder": self.embedder, "--crawl": self.crawl}
        judge = [f"retrieve.embedder={json.dumps(str(model))}"] if model else []  # quoted, as YAML
        return [
            *("lvd-curate", "run", "--config", str(self.config), "--work", str(self.work)),
            *("--pipeline", self.curation.pipeline, "--executor", self.executor),
            *(word for name, value in named.items() if value for word in (name, value)),
            *(word for name in self.seeds for word in ("--seed", name)),
            *(word for name in self.holdouts for word in ("--holdout", name)),
            *(word for text in (*self.curate_set, *judge) for word in ("--set", text)),
            *("--out", str(out), "--replace"),  # OUT is the loop's own, whatever another model kept
        ]

    def train_command(self, images: Sequence[str], out: Path, *more: str) -> list[str]:
        """Return the command that trains the recipe on what the options `images` name."""
        launch = ["lvd-train"]
        if self.processes > 1:
            many = str(self.processes)
            launch = ["torchrun", "--standalone", "--nproc-per-node", many, "-m", "train.launch"]
        return [
            *(*launch, "run", "--config", str(self.config), "--recipe", self.recipe),
            *(*images, "--out", str(out)),
            *(word for text in self.train_set for word in ("--set", text)),
            *more,
        ]

    def is_begun(self) -> bool:
        """Return whether `out` holds this loop; LvdError if it holds another one, or other files."""
        path = self.out / SETTINGS
        if not path.exists():
            there = {file.name for file in self.out.iterdir() if not file.name.startswith(".")}
            if foreign := sorted(there - {CHECKED, *SCORES}):
                raise LvdError(
                    f"--out {self.out} holds {foreign[0]}, which no loop wrote: name another folder"
                )
            return False
        there = read_json(path)
        before, now = flat(there["settings"]), flat(self._settings())
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                was, asked = (
                    "null" if (value := settings.get(key)) is None else repr(value)
                    for settings in (before, now)
                )
                raise LvdError(
                    f"--out {self.out} holds a loop with {key}={was}, not {asked}: name another "
                    "--out, or go on with what it began with"
                )
        if there["rounds"] > self.rounds:
            raise LvdError(
                f"--out {self.out} holds a loop of {there['rounds']} rounds, not {self.rounds}: "
                f"say --rounds {there['rounds']} or more, or name another --out"
            )
        return True

    def record(self) -> None:
        """Write the settings that `is_begun` compares."""
        path, now = self.out / SETTINGS, {"rounds": self.rounds, "settings": self._settings()}
        if not path.exists() or read_json(path) != now:
            write_json(path, now)

    def _settings(self) -> dict[str, Any]:
        """Return the settings that decide the loop's result: no folders, no number of processes."""
        curation = comparable(self.curation)
        return {
            **curation,
            "embedder": self.curation.embedder_name,
            "recipe": self.recipe,
            "recipes": recipe_as_written(self.config, self.recipe),
            "train-set": list(self.train_set),
        }


def loop_request(
    *,
    pipeline: str,
    out: Path | None,
    config: Path,
    recipe: str,
    truth: Path | None,
    knn_train: str | None,
    knn_test: str | None,
    curate_set: Sequence[str],
    **options: Any,
) -> LoopRequest:
    """Return the request, checked as far as it can be without reading an image.

    Raises LvdError, in one line, for what is wrong with it.
    """
    named = {name: options[name] for name in ("embedder", "crawl", "seeds", "holdouts")}
    request = read_request(config, pipeline, overrides=curate_set, **named)
    if (knn_train is None) != (knn_test is None):
        raise LvdError("--knn-train and --knn-test go together: say both, or neither")
    if out is None:
        own = named["crawl"] is None and not named["seeds"]
        out = Path("runs") / "loop" / (pipeline if own else default_out(request).name)
    recipe_as_written(config, recipe)
    return LoopRequest(
        curation=request,
        out=out,
        config=config,
        recipe=recipe,
        truth=truth,
        knn_train=knn_train,
        knn_test=knn_test,
        curate_set=curate_set,
        **options,
    )


def recipe_as_written(config: Path, name: str) -> dict[str, Any]:
    """Return the recipe and those that it is `like`, as they stand in the file, without notes."""
    known = load_yaml(config).get("recipes") or {}
    if name not in known:
        raise LvdError(
            f"no recipe {name!r} in {config}{nearest(name, known)}: "
            f"it has {', '.join(sorted(known)) or 'none'}"
        )
    chain: dict[str, Any] = {}
    while name in known and name not in chain and isinstance(known[name], dict):
        chain[name] = {key: value for key, value in known[name].items() if key != "note"}
        name = str(chain[name].get("like"))
    return expand(chain)
