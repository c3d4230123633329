"""The embedder that comes with the project: a model folder that `lvd-train` made; see README.md."""

from pathlib import Path

NAME = "bundled"
"""What it is called in pipelines and on the command lines."""
FOLDER = Path(__file__).resolve().parent
"""config.json and model.safetensors."""
