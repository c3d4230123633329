"""Where a run's numbers are drawn as curves: TensorBoard, Weights & Biases, MLflow, behind one interface."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from uuid import uuid4

from shared.errors import LvdError
from train.monitoring.settings import LogSettings

TENSORBOARD = "tensorboard"
_PARAMS = 100
"""The most that MLflow takes in one request."""


class Curves(Protocol):
    """What draws numbers over steps. A run that goes on opens it again at its next step."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Draw the numbers of a step."""

    def close(self) -> None:
        """Leave everything written."""


def open_curves(
    out: Path, settings: LogSettings, start_step: int, recipe: Mapping[str, Any]
) -> list[Curves]:
    """Return what the settings name, for a run in `out` that goes on at `start_step`.

    `recipe` holds its settings, which are shown beside the curves. Raises LvdError, in one line,
    where an extra is not installed or a service refuses.
    """
    curves: list[Curves] = []
    if settings.tensorboard:
        curves.append(TensorBoard(out / TENSORBOARD, start_step))
    if settings.wandb is not None:
        curves.append(WeightsAndBiases(settings.wandb, out, recipe))
    if settings.mlflow is not None:
        curves.append(MLflow(settings.mlflow, out, recipe))
    return curves


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Path, start_step: int) -> None:
        # It takes 0.2 s and a thousand modules, which only the process that writes curves pays for.
        from torch.utils.tensorboard import SummaryWriter

        # The viewer hides what an interrupted run had written of this step and later ones.
        self._writer = SummaryWriter(str(folder), purge_step=start_step or None)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Draw the numbers of a step; the file is with the system when this returns."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a project of Weights & Biases, whose own settings (WANDB_MODE=offline) hold."""

    def __init__(self, project: str, out: Path, recipe: Mapping[str, Any]) -> None:
        wandb = _extra("wandb", "log.wandb")
        try:
            self._run = wandb.init(
                project=project,
                name=out.name,
                id=_identity(out / ".wandb-run", lambda: uuid4().hex),
                resume="allow",
                dir=str(out),
                config=dict(recipe),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise LvdError(f"log.wandb {project}: {_first_line(error)}") from None

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Draw the numbers of a step, unless an interrupted run had gone further."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Wait until all is written or sent."""
        self._run.finish()


class MLflow:
    """A run of the experiment `lvd` of an MLflow server."""

    def __init__(self, uri: str, out: Path, recipe: Mapping[str, Any]) -> None:
        mlflow = _extra("mlflow", "log.mlflow")
        self._metric, self._param = mlflow.entities.Metric, mlflow.entities.Param
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            self._run = _identity(out / ".mlflow-run", lambda: self._new_run(out.name, recipe))
            self._client.update_run(self._run, status="RUNNING")
        except mlflow.exceptions.MlflowException as error:
            raise LvdError(f"log.mlflow {uri}: {_first_line(error)}") from None

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Draw the numbers of a step; those of an interrupted run stay beside them."""
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        """Say that the run has ended."""
        self._client.set_terminated(self._run)

    def _new_run(self, name: str, recipe: Mapping[str, Any]) -> str:
        experiment = self._client.get_experiment_by_name("lvd")
        known = experiment.experiment_id if experiment else self._client.create_experiment("lvd")
        run = self._client.create_run(known, run_name=name).info.run_id
        params = [self._param(key, str(value)) for key, value in recipe.items()]
        for some in (params[at : at + _PARAMS] for at in range(0, len(params), _PARAMS)):
            self._client.log_batch(run, params=some)
        return run


def _identity(path: Path, make: Callable[[], str]) -> str:
    """Return the name that a service knows the run in this folder by; made once."""
    if not path.exists():
        path.write_text(make(), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _extra(package: str, setting: str) -> ModuleType:
    try:
        return import_module(package)
    except ImportError:
        raise LvdError(
            f"{setting} needs the package {package}: uv pip install -c constraints.txt -e '.[{package}]', "
            "or leave it out"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
