"""The embedder for copies that comes with the project; `lvd-train` made it, see README.md."""

from pathlib import Path

NAME = "bundled-copies"
"""What it is called in pipelines and on the command lines."""
FOLDER = Path(__file__).resolve().parent
"""config.json and model.safetensors."""
