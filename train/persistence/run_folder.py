"""The folder of a training run: what lies where in it, whose it is, and what it was made with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.config import flat
from shared.datasets.folders import describe_folder
from shared.errors import LvdError
from shared.progress import say, warn
from shared.storage.files import read_json, write_json
from shared.storage.locks import busy, locked
from train.recipe import FREE_ON_RESUME, LENGTH, PLACES, Recipe

LIBRARIES = ("numpy", "pillow", "timm", "torch", "torchvision")


class RunFolder:
    """Names the files of a run below `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.checkpoints = out / "checkpoints"
        self.model = out / "model"
        self.index = _shared_index(out)
        """Of all runs beside this one."""
        self.profile = out / "profile"
        self.run = out / "run.json"
        self.done = out / "done.json"
        self.skipped = out / "skipped.jsonl"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second run from writing here; LvdError where one is at it."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / ".lock").touch()
        except OSError as error:
            raise LvdError(
                f"--out {self.out} cannot be written ({error.strerror}): name another folder"
            ) from None
        with locked(self.out / ".lock", busy(self.out)):
            yield

    def refuse_foreign(self, recipe: Recipe, data: str) -> None:
        """Raise LvdError where the folder holds a run with other settings or on other images.

        A changed length is no refusal but a warning: it bends the schedules.
        """
        if not self.run.exists():
            return
        before = read_json(self.run)
        self._refuse_others(before)
        remedy = "name another --out, or say --resume never to begin anew (what is there is kept)"
        theirs, ours = flat(_whole(before["recipe"])), flat(recipe.model_dump(mode="json"))
        for key in sorted(theirs.keys() | ours.keys()):
            there, here = theirs.get(key), ours.get(key)
            if there == here or key.startswith(FREE_ON_RESUME) or key.endswith(PLACES):
                continue
            if key in LENGTH:
                warn(
                    f"{key} was {there!r} and is now {here!r}: from here on the schedules are "
                    "those of the new length"
                )
                continue
            raise LvdError(
                f"--out {self.out} holds a run with {key}={there!r}, not {here!r}: {remedy}"
            )
        if before["data"] != data:
            raise LvdError(f"--out {self.out} holds a run on other images: {remedy}")

    def _refuse_others(self, run: dict[str, Any]) -> None:
        if "recipe" not in run:
            whose = describe_folder(self.out) or "no run of lvd-train"
            raise LvdError(f"--out {self.out} is {whose}; name another --out")

    def begin(
        self, recipe: Recipe, data: str, steps: int, origin: Mapping[str, Any] | None = None
    ) -> None:
        """Write `run.json`: what the run is made with, and on, and how many steps it takes.

        `origin` is what `train.recipe_tree.describe_origin` says of the recipe.
        """
        versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
        settings = recipe.model_dump(mode="json")
        about = {"recipe": settings, "data": data, "steps": steps, "versions": versions}
        write_json(self.run, about | ({"origin": dict(origin)} if origin else {}))

    def set_aside(self) -> None:
        """Move what an earlier run left to `OUT/earlier-N`; LvdError where that is no training."""
        if self.run.exists():
            self._refuse_others(read_json(self.run))
        keep = ("earlier-", "index", ".")  # the index belongs to the shards, whoever made it
        left = [path for path in sorted(self.out.iterdir()) if not path.name.startswith(keep)]
        if not left:
            return
        number = 1 + sum(1 for _ in self.out.glob("earlier-*"))
        aside = self.out / f"earlier-{number}"
        aside.mkdir()
        for path in left:
            path.rename(aside / path.name)
        say(f"what an earlier run left in {self.out} is in {aside}")

    def note_broken(self, rank: int, broken: Sequence[str]) -> None:
        """Append the images that a process could not read to its list of them."""
        with (self.out / f"broken-{rank}.txt").open("a", encoding="utf-8") as file:
            file.writelines(f"{image}\n" for image in broken)

    def note_skipped(self, rank: int, step: int, odd: Sequence[str], keys: Sequence[str]) -> None:
        """Append a step that was not finite, what of it was not, and the images of a process."""
        line = {"step": step, "rank": rank, "not_finite": list(odd), "keys": list(keys)}
        with self.skipped.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def finished(self) -> int:
        """The steps of the run that has come to its end here, or 0."""
        return int(read_json(self.done).get("steps", 0)) if self.done.exists() else 0

    def finish(self, steps: int) -> None:
        """Mark the run as complete."""
        write_json(self.done, {"steps": steps})


def _shared_index(out: Path) -> Path:
    around = out.absolute().parent
    if not around.exists() or os.access(around, os.W_OK):
        return out.parent / ".index"
    return out / "index"


def _whole(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an earlier run, with the defaults of those that came since."""
    try:
        return Recipe.model_validate(recipe).model_dump(mode="json")
    except ValidationError:  # one that is no more; compared as it stands
        return recipe
