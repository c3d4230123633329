"""The files by which a run, a checkpoint or an export of ours is told from anything else."""

from __future__ import annotations

from pathlib import Path

MANIFEST = "manifest.json"
"""Of a checkpoint."""
ONE_FILE = "checkpoint.safetensors"
"""What `lvd-train export --format heads` and `single` write beside a config.json with the recipe:
tensors named as in a checkpoint."""


def is_of_a_run(source: Path) -> bool:
    """Tell what `train.weights.trained` finds, whole or torn, from a model folder and the rest."""
    path = source.expanduser().resolve()
    marks = ("run.json", "checkpoints", MANIFEST, ONE_FILE)
    return path.name.startswith("step-") or any((path / mark).exists() for mark in marks)
