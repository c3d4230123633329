"""Curves of Weights & Biases and of MLflow, by their own packages and without a network."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from shared.errors import LvdError
from train.monitoring.metrics import METRICS, MetricsWriter, read_metrics
from train.monitoring.settings import LogSettings

RECIPE = {"batch_size": 8, "model.name": "vit_tiny_patch16_224"}


def write_twice(out: Path, settings: LogSettings) -> None:
    """Two lines of a run, and one when it goes on."""
    for steps in ((0, 1), (2,)):
        writer = MetricsWriter(out, settings, steps[0], RECIPE)
        for step in steps:
            writer.write(step, {"loss": step / 4, "collapse": ["low_rank"]})
        writer.close()


def records(path: Path) -> Iterator:
    """What an offline run has kept for its service: a log of LevelDB's format, of one block here."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at = path.read_bytes(), len(":W&B") + 3
    assert len(data) < 2**15
    while at + 7 <= len(data):
        _, length, whole = struct.unpack_from("<IHB", data, at)
        assert whole == 1
        at += 7 + length
        if at > len(data):  # half written yet
            return
        yield Record.FromString(data[at - length : at])


def losses_and_runs(out: Path) -> tuple[dict[int, float], set[tuple[str, str]]]:
    """What its files hold by now: the losses by step, and the project and identity of each run."""
    found, identities = {}, set()
    for path in sorted(out.glob("wandb/offline-run-*/*.wandb")):
        for record in records(path):
            if record.HasField("run"):
                identities.add((record.run.project, record.run.run_id))
            for item in record.history.item:
                if "loss" in (item.key, *item.nested_key):
                    found[record.history.step.num] = float(item.value_json)
    return found, identities


def test_wandb_gets_the_numbers_of_one_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")

    monkeypatch.setenv("WANDB_MODE", "offline")
    write_twice(tmp_path, LogSettings(tensorboard=False, wandb="lvd-tests"))
    end = monotonic() + 60
    found, identities = losses_and_runs(tmp_path)
    while len(found) < 3 and monotonic() < end:  # its service writes on behind the end of a run
        sleep(0.1)
        found, identities = losses_and_runs(tmp_path)
    assert found == {0: 0.0, 1: 0.25, 2: 0.5}
    ((project, identity),) = identities
    assert project == "lvd-tests"
    assert identity == (tmp_path / ".wandb-run").read_text()


def test_mlflow_gets_the_numbers_and_settings_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which its small package has alone
    uri = (tmp_path / "mlruns").as_uri()
    write_twice(tmp_path / "out", LogSettings(tensorboard=False, mlflow=uri))
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("lvd").experiment_id
    (run,) = client.search_runs([experiment])
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert run.data.params["batch_size"] == "8"
    assert (run.info.run_name, run.info.status) == ("out", "FINISHED")


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_without_its_package_the_setting_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    settings = LogSettings.model_validate({"tensorboard": False, package: "somewhere"})
    with pytest.raises(
        LvdError,
        match=rf"^log.{package} needs .*uv pip install -c constraints.txt -e '\.\[{package}\]'",
    ):
        MetricsWriter(tmp_path, settings, 0)
    assert not list(read_metrics(tmp_path / METRICS))
