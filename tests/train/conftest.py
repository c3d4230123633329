"""The one run of two processes whose checkpoints several tests read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from small_run import command, write_config, write_shards


@pytest.fixture(scope="session")
def sharded_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The OUT of a run that two processes have trained and saved, each its share: do not touch.

    Two steps, a checkpoint of each; a backbone with registers and LayerScale.
    """
    folder = tmp_path_factory.mktemp("sharded")
    config, shards = write_config(folder), write_shards(folder / "shards")
    changes = (
        *("steps=2", "checkpoints.every=1", "data.workers=0", "parallel.strategy=fsdp"),
        *("model.options.reg_tokens=2", "model.layer_scale=0.1", "teacher.momentum=[0.5,0.5]"),
        "objectives.centering.kind=ema",
    )
    more = [text for value in changes for text in ("--set", value)]
    run_twofold(command(config, shards, folder / "out", *more))
    assert len(list((folder / "out" / "checkpoints" / "step-0000002").glob("*.safetensors"))) == 2
    return folder / "out"


def run_twofold(arguments: list[str]) -> None:
    """Run the command in this process and in one more, with the environment torchrun gives them."""
    from train.cli import main

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    both |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    second = {**os.environ, **both, "RANK": "1", "LOCAL_RANK": "1"}
    with subprocess.Popen([sys.executable, "-m", "train.launch", *arguments], env=second) as other:
        threads = torch.get_num_threads()
        try:
            first = {**both, "RANK": "0", "LOCAL_RANK": "0"}
            result = CliRunner(env=first).invoke(main, arguments)
            assert result.exit_code == 0, result.output
            assert other.wait(60) == 0
        finally:
            other.kill()
            torch.set_num_threads(threads)
