"""Load this folder into LightlyStudio, and open it: `python studio.py`, where lightly-studio is installed.

An image's tag is what became of it, its metadata are the other columns of images.csv. With vectors.npy,
which the run's own embedder made, the map and the search for similar images work and no model is fetched.
LightlyStudio sends usage events unless LIGHTLY_STUDIO_ANALYTICS_ENABLED=false.
"""

import csv
from pathlib import Path

import lightly_studio as ls
import numpy as np
from lightly_studio_serve.embedder import ImagePathEmbedder

HERE = Path(__file__).resolve().parent
NUMBERS = {
    "seed_similarity": float,
    "duplicate_similarity": float,
    "group": int,
    "cluster": int,
}
LEFT_OUT = ("path", "decision", "width", "height", "format")
"""Columns that LightlyStudio has in a form of its own."""


class StoredVectors(ImagePathEmbedder):
    """Gives images the vectors that lie in this folder."""

    def __init__(self, paths, vectors):
        self.rows = {path: row for row, path in enumerate(paths) if vectors[row].any()}
        self.vectors = vectors

    def embedding_space_spec(self):
        """Return the name and the width of the vectors."""
        return ls.EmbeddingSpaceSpec("lvd-curate", self.vectors.shape[1])

    def embed_images(self, paths):
        """Return the vectors of those images that have one."""
        names = [Path(path).relative_to(HERE).as_posix() for path in paths]
        known = [index for index, name in enumerate(names) if name in self.rows]
        found = self.vectors[[self.rows[names[index]] for index in known]]
        return ls.EmbeddingResult(found, known)


def load(folder=HERE):
    """Return the images of the folder as a dataset, stored in lightly_studio.db beside them."""
    with (folder / "images.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    vectors = folder / "vectors.npy"
    if vectors.exists():
        ls.register_default_embedder(StoredVectors(rows, np.load(vectors, mmap_mode="r")))
    ls.db_manager.connect(db_file=str(folder / "lightly_studio.db"), cleanup_existing=True)
    dataset = ls.ImageDataset.create(folder.name)
    dataset.add_images_from_path(folder / "data", tag_depth=1, embed=vectors.exists())
    told = []
    for sample in dataset:
        row = rows[Path(sample.file_path_abs).relative_to(folder).as_posix()]
        about = {k: NUMBERS.get(k, str)(v) for k, v in row.items() if v and k not in LEFT_OUT}
        told.append((sample.sample_id, about))
    dataset.update_metadata(told)
    return dataset


if __name__ == "__main__":
    load()
    ls.start_gui()
