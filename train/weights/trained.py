"""Finds what a run of ours has trained, checkpoint and recipe, and loads its networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.config import validate
from shared.errors import LvdError
from shared.storage.files import read_json
from train.model.model_folder import CONFIG
from train.model.network import Network
from train.persistence.checkpoints import PARTIAL, newest, problem_of
from train.persistence.marks import MANIFEST, ONE_FILE
from train.recipe import Recipe
from train.student import new_network
from train.weights.continuation import check_fit, read_network

Role = Literal["teacher", "student"]

REMEDY = "give the OUT of a run, or one of its OUT/checkpoints/step-... folders"


@dataclass(frozen=True)
class Trained:
    """A whole checkpoint of a run, and the recipe that it was made with."""

    checkpoint: Path
    recipe: Recipe
    step: int
    """Optimiser steps behind it."""

    def network(self, role: Role) -> Network:
        """Return its teacher or student: whole, on the CPU, in float32, eval mode, no gradients.

        Raises LvdError where the weights are not those of the recipe.
        """
        network = new_network(self.recipe, device="meta")
        state = {name: value.float() for name, value in read_network(self.checkpoint, role).items()}
        check_fit(state, network, f"{self.checkpoint}: its {role}", "the recipe it is kept with")
        network.load_state_dict(state, assign=True)
        return network.requires_grad_(False).eval()


def find_trained(source: Path) -> Trained:
    """Return what is trained in `source`: the OUT of a run, complete or not, or a step folder.

    Of an OUT it is the newest whole checkpoint. An export of the format `heads` or `single` is as
    good. Raises LvdError, in one line, for a torn or foreign checkpoint, and for one without its
    run's `run.json`.
    """
    path = source.expanduser().resolve()
    if (path / ONE_FILE).is_file():
        config = path / CONFIG
        return Trained(path, _recipe(config, source), int(_value(config, "step", source)))
    if (path / "checkpoints").is_dir():
        checkpoint, out = newest(path / "checkpoints"), path
        if checkpoint is None:
            raise LvdError(
                f"{source} has no whole checkpoint below checkpoints/: let the run come to its "
                "first one, or give the OUT of another run"
            )
    elif problem := _foreign_or_torn(path):
        raise LvdError(f"{source} is no whole checkpoint of lvd-train ({problem}): {REMEDY}")
    else:
        checkpoint, out = path, path.parent.parent
    step = int(_value(checkpoint / MANIFEST, "step", source))
    return Trained(checkpoint, _recipe(out / "run.json", source), step)


def _foreign_or_torn(path: Path) -> str:
    """Return why `path` is no whole checkpoint, or an empty string."""
    if not path.is_dir():
        return "it is a file" if path.exists() else "there is no such folder"
    if path.suffix == PARTIAL:
        return "it was not finished"
    try:
        return problem_of(path)
    except (TypeError, AttributeError):
        return f"its {MANIFEST} is another program's"


def _recipe(file: Path, source: Path) -> Recipe:
    return validate(Recipe, _value(file, "recipe", source), file=file, at="recipe")


def _value(file: Path, key: str, source: Path) -> Any:
    try:
        return read_json(file)[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LvdError(
            f"{source} has no readable {key} in {file}: give a checkpoint where its run left it, "
            "in OUT/checkpoints beside OUT/run.json, or an export as a whole"
        ) from error
