"""The OUT of a training as its files are, without a training: quick to make, and to bend."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image
from small_run import RECIPE

from train.monitoring.look_files import PICTURES, look_file
from train.recipe import Recipe

BATCH, STEPS = RECIPE["batch_size"], 100


def step_line(step: int, **values) -> dict:
    """A line of metrics of one step."""
    return {
        "step": step,
        "epoch": step // 10,
        "loss": 8 - step / 50,
        "dino": 5 - step / 100,
        "ibot": 3 - step / 100,
        "koleo": -step / 100,
        "lr": 1e-3 * step,
        "momentum": 0.99,
        "last_layer_frozen": False,
        "gradient_norm/backbone": 0.5,
        "teacher_entropy": 2.0,
        "kl_to_uniform": 1.0,
        "prototypes_won": 6.0,
        "feature_rank": 5.0,
        "skipped": 0,
        "broken": 0,
        "images_per_second": 16.0,
        "step_seconds": 0.5,
        "data_wait": 0.1,
        "memory_gib": 1.5,
        "collapse": [],
        **values,
    }


def write_out(out: Path, lines: list[dict], *, done: bool = True, **run) -> Path:
    """Write a run of `STEPS` steps with these lines of metrics, and pictures of two steps."""
    out.mkdir(parents=True)
    recipe = Recipe.model_validate(RECIPE).model_dump(mode="json")
    about = {"recipe": recipe, "steps": STEPS, "data": "d" * 32, "versions": {"torch": "2"}, **run}
    (out / "run.json").write_text(json.dumps(about))
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        (out / "done.json").write_text(json.dumps({"steps": STEPS}))
    data = io.BytesIO()
    Image.new("RGB", (540, 180), (20, 120, 60)).save(data, "JPEG")
    (out / "looks").mkdir()
    for name in (PICTURES, *(look_file(w, s) for w in ("attention", "patches") for s in (0, 50))):
        (out / name).write_bytes(data.getvalue())
    return out


def whole_run() -> list[dict]:
    """The lines of a run that learned, with a score each 20 steps."""
    lines = [step_line(step) for step in range(0, STEPS, 2)]
    scores = [{"step": s, "knn": 0.1 + s / 200, "knn_seconds": 2.0} for s in range(0, 101, 20)]
    return sorted(lines + scores, key=lambda line: line["step"])
