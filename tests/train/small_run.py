"""A dataset and a recipe so small that whole runs of the real command take seconds."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml
from click.testing import CliRunner
from forked import Forked, forked_command, run_main, run_ranks
from PIL import Image

from train.cli import main
from train.monitoring.metrics import TIMINGS, read_metrics

HEAD = {"prototypes": 32, "hidden": 32, "bottleneck": 16}
RECIPE = {
    "note": "for tests",
    "batch_size": 8,
    "group_size": 4,
    "steps": 12,
    "epochs": 4,
    "data": {"workers": 0, "window": 2},
    "crops": {"global_size": 32, "local_size": 16, "local_views": 2},
    "masks": {},
    "model": {
        "name": "vit_tiny_patch16_224",
        "patch_size": 8,
        "options": {"embed_dim": 24, "depth": 2, "num_heads": 2},
        "drop_path": 0.25,
    },
    "heads": {"dino": HEAD, "ibot": HEAD},
    "optimiser": {"base_lr": 5e-3, "warmup_epochs": 1, "freeze_last_layer_epochs": 0.5},
    "parallel": {"precision": "float32", "device": "cpu"},
    "checkpoints": {"every": 4, "keep": 2},
    "log": {"every": 1},
    "looks": {"times": 0},
    "knn": {"every": None},
}
IMAGES, SHARDS = 36, 3


def draw(number: int) -> bytes:
    """A JPEG of a coloured ramp with a rectangle on it, of a class that its colour tells."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:44, 0:52]
    ramp = (x * rng.uniform(-2, 2) + y * rng.uniform(-2, 2))[..., None] + rng.uniform(60, 190, 3)
    top, left = rng.integers(0, 28, 2)
    ramp[top : top + 14, left : left + 14] = 255 * np.eye(3)[number % 3]
    data = io.BytesIO()
    Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()


def write_shards(folder: Path, broken: dict[int, bytes] | None = None) -> Path:
    """Tars of drawn images with a `.cls` each; `broken` replaces the bytes of some."""
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard, IMAGES, SHARDS):
                image = (broken or {}).get(number, draw(number))
                for end, data in (("jpg", image), ("cls", str(number % 3).encode())):
                    info = tarfile.TarInfo(f"{number:09d}.{end}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def write_config(folder: Path, **recipes: dict) -> Path:
    path = folder / "pipelines.yaml"
    path.write_text(yaml.safe_dump({"recipes": {"small": RECIPE, **recipes}}))
    return path


def command(config: Path, shards: Path, out: Path, *more: str, recipe: str = "small") -> list[str]:
    return [
        *("run", "--config", str(config), "--recipe", recipe),
        *("--shards", str(shards), "--out", str(out), *more),
    ]


@contextmanager
def started(arguments: list[str], log: Path) -> Iterator[Forked]:
    """Run the command in a process of its own, to be killed or told to stop; `log` gets its words."""
    with forked_command("train.cli", arguments, log) as process:
        yield process


def run_command(arguments: list[str], code: int = 0, **environment: str) -> str:
    """Run the command, and return what it said.

    In a process of its own: what other tests have done in this one changes the last bits of sums.
    """
    with ExitStack() as stack:
        log = Path(stack.enter_context(TemporaryDirectory())) / "log"
        return stack.enter_context(
            forked_command("train.cli", arguments, log=log, **environment)
        ).said(code)


def run_here(arguments: list[str]) -> str:
    """Run the command in this process, which starts sooner, and return what it said."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def run_twofold(arguments: list[str], logs: Path) -> None:
    """Run the command in two processes, with the environment that torchrun gives them."""
    run_ranks(run_main, "train.cli", arguments, folder=logs)


def lines(out: Path) -> list[dict]:
    """The metrics of a run without what only tells the time."""
    kept = []
    for line in read_metrics(out / "metrics.jsonl"):
        kept.append({key: value for key, value in line.items() if key not in TIMINGS})
    return json.loads(json.dumps(kept))
