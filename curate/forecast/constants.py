"""What the units of each stage cost, as terms of the number of images: read, kept, and fitted.

A cost is a sum of terms, each a coefficient times a quantity of the crawl (`quantities`): how a cost
grows is data, as `calibrate.py` finds it in crawls of three sizes or more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.optimize import nnls

from curate.catalogue.collection import block_size
from curate.dedup.leaders import count_leaders
from curate.dedup.near import count_compared
from curate.dedup.probes import count_ranked
from curate.neighbours.cluster import ClusterSettings, count_clusters
from curate.neighbours.levels import count_centroids
from shared.errors import LvdError

MEASURED = {"catalogue", "cluster", "dedup", "retrieve", "select", "report", "export"}
"""The stages whose units are measured one kind by one; the others' costs have fields of their own."""
SHIPPED = Path(__file__).with_name("constants.json")

COUNTED = "compared"
"""The quantity that units count themselves, so that it is known without the noise of a clock."""
KEPT = "kept"
"""The images that go out: of a made-up crawl as many as it came to, in a forecast the share that is asked for."""
Terms = dict[str, float]
"""Coefficients by the quantity that each multiplies."""


def quantities(images: float, cut_into: int | None = None) -> dict[str, float]:
    """Return what costs are made of, for so many images, as the stages cut a crawl and search in it.

    `clusters` is the root of the images, as small crawls have it, `made` the clusters that there are.
    Blocks hold about 4 sqrt(n) images.
    `cut_into` is the number of clusters of what is cut otherwise than a crawl.
    """
    count, settings = int(images), ClusterSettings(clusters=cut_into or "auto")
    made, block = count_clusters(count, settings), float(block_size(count))
    clusters = images**0.5
    blocks = images / block
    return {
        "one": 1.0,
        "images": images,
        "clusters": clusters,
        "images x root of clusters": images * clusters**0.5,
        "images x clusters": images * clusters,
        "images x centroids": images * count_centroids(made),
        "images x ranked": images * count_ranked(made),
        "made x made": float(made**2),
        "images x compared": images * count_compared(count),
        "images x leaders": images * count_leaders(count),
        "block": block,
        "blocks": blocks,
        "blocks x blocks": blocks**2,
    }


class UnitCost(BaseModel):
    """What all units of one kind take, in terms of the images of the crawl."""

    model_config = ConfigDict(extra="forbid")

    units: Terms
    cpu_s: Terms
    """Of all units together."""
    bytes: Terms
    """Of all files that they commit."""
    puts: Terms
    """Files that they commit, manifests included."""
    gets: Terms
    """Different files that each opens, over all units."""
    memory: Terms
    """Bytes that one unit adds to its process at its peak, beside mapped files."""
    compared: Terms = {}
    """Pairs of vectors that all units compare, as they count them: `compared` in `cpu_s`."""

    def quantities(
        self, images: float, kept: float = 0.0, cut_into: int | None = None
    ) -> dict[str, float]:
        """Return the quantities of so many images, with how many pairs these units compare.

        `kept` are those of the images that go out.
        """
        known = quantities(images, cut_into) | {KEPT: kept}
        return known | {COUNTED: evaluate(self.compared, known)}

    def is_reduce(self) -> bool:
        """Tell whether it is one unit however many images there are."""
        return "blocks" not in self.units


class EmbedderCost(BaseModel):
    """What an image costs one embedder."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(ge=1)
    decode_s: float = Field(ge=0)
    """CPU seconds of reading, hashing, decoding and scaling one image."""
    forward_s: float = Field(ge=0)
    """CPU seconds of its forward pass."""
    gpu_rate: float | None = Field(None, gt=0)
    """Images/s of the forward pass on a card."""
    torch: bool = True
    """Whether its processes import torch, which they hold to the end of the run."""
    measured_on: str = ""


class Constants(BaseModel):
    """All that a forecast stands on, as it was measured somewhere."""

    model_config = ConfigDict(extra="forbid")

    machine: str
    """Where the costs were measured; CPU seconds are of one of its cores."""
    versions: dict[str, str]
    sizes: list[int] = Field(min_length=3)
    """Images of the crawls that were taken through the stages."""
    dim: int = Field(ge=1)
    """Dimensions of their vectors."""
    seeds: int = Field(ge=1)
    """Images of their seed."""
    pair_s: float = Field(gt=0)
    """CPU seconds of comparing one image with one seed image."""
    unit_s: float = Field(0, ge=0)
    """CPU seconds of making one stored vector a unit vector."""
    torch_s: float = Field(0, ge=0)
    """CPU seconds of importing torch, once a process that compares many."""
    torch_bytes: float = Field(0, ge=0)
    """Bytes that a process holds of it from then on."""
    process: float = Field(ge=0)
    """Bytes that a process holds before its first unit, without torch."""
    embedders: dict[str, EmbedderCost]
    facts_bytes: float = Field(ge=0)
    """Of the facts of one image."""
    export_s: float = Field(ge=0)
    """CPU seconds of writing one kept image to a shard, whose bytes are copied: reading, hashing, writing."""
    look_s: float = Field(ge=0)
    """CPU seconds of a look at the pixels of a pair."""
    units: dict[str, dict[str, UnitCost]]
    """By stage, and by the function that makes a unit."""


def read_constants(path: Path) -> Constants:
    """Return the constants of a file; LvdError, in one line, where it holds none."""
    try:
        constants = Constants.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise LvdError(
            f"--constants {path}: {error}: name a file that --calibrate wrote"
        ) from error
    except ValidationError as error:
        [first, *_] = error.errors()
        where = ".".join(map(str, first["loc"])) or "the file"
        raise LvdError(
            f"--constants {path}: {where}: {first['msg']}: name a file that --calibrate wrote"
        ) from error
    if missing := sorted(MEASURED - constants.units.keys()):
        raise LvdError(
            f"--constants {path} has no costs of {', '.join(missing)}: an earlier version wrote it; "
            "measure them again with --calibrate"
        )
    return constants


def write_constants(constants: Constants, path: Path) -> None:
    """Write them, for people to read too: one cost a line."""
    told = constants.model_dump(mode="json", exclude_defaults=True)
    text = json.dumps(_rounded(told), indent=1)
    path.write_text(text + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return value


def evaluate(terms: Mapping[str, float], known: Mapping[str, float]) -> float:
    """Return a cost, of the quantities of a crawl."""
    return sum(coefficient * known[name] for name, coefficient in terms.items())


def fit(
    known: Sequence[Mapping[str, float]], costs: Sequence[float], candidates: Sequence[str]
) -> Terms:
    """Return the terms that are nearest to measured costs: least squares of the relative errors.

    `known` has the quantities of each crawl. No coefficient is negative. A cost that was nothing in
    some crawl counts there by its own size.
    """
    values = np.array(costs, np.float64)
    if not values.any():
        return {}
    design = np.array([[each[name] for name in candidates] for each in known])
    scale = np.where(values > 0, values, values.max())
    norms = (design / scale[:, None]).max(axis=0)
    found, _ = nnls(design / scale[:, None] / norms, values / scale)
    return {
        name: float(coefficient)
        for name, coefficient in zip(candidates, found / norms, strict=True)
        if coefficient > 0
    }
