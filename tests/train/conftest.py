"""The one run of two processes whose checkpoints several tests read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import server
from small_run import command, run_twofold, write_config, write_shards

from train.estimate import Load, cost_of_image
from train.model.network import Network
from train.monitoring import speed


@pytest.fixture(scope="session", autouse=True)
def _server() -> None:
    """Start the server before a loader does, which would have it import the loader alone."""
    server()


@pytest.fixture(scope="session", autouse=True)
def _costs_are_kept() -> Iterator[None]:
    """Count what an image of one network and load costs once: it is half of a run of few steps.

    With a frozen teacher it is counted each time, and by what is tested directly.
    """
    known: dict[tuple, tuple] = {}

    def cost(network: Network, load: Load, frozen: object = None) -> tuple:
        shapes = [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()]
        dropped = [block.drop_path for block in network.backbone.vit.blocks]
        key = (str(network), *shapes, *dropped, load)
        if frozen is not None or key not in known:
            known[key] = cost_of_image(network, load, frozen)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "cost_of_image", cost)
        yield


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
        *("objectives.centering.kind=ema", "looks.times=2"),
    )
    more = [text for value in changes for text in ("--set", value)]
    run_twofold(command(config, shards, folder / "out", *more), folder)
    assert len(list((folder / "out" / "checkpoints" / "step-0000002").glob("*.safetensors"))) == 2
    return folder / "out"
