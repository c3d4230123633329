"""How embedders of meaning do on crawl-small's parts 00004 and 00005, with 95 % intervals (bootstrap).

The bundled models never saw these parts.

    .venv/bin/python benchmarks/bundled.py DATA/crawl-small
    .venv/bin/python benchmarks/bundled.py DATA/crawl-small --embedder runs/train/bundled/model
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared.bundled import FOLDER
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.parts import PartReader
from shared.embedders.embedder import load, settings_for_folder
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.pictures.images import ImageError, decode

HELD_OUT = ("00004", "00005")
RESAMPLES = 1000
PRECISION = 0.99

PHOTOGRAPHS = ("animal", "object")
OTHERS = ("chart", "icon", "screenshot", "document", "meme", "placeholder")
AREAS = (
    ("animals / not photographs", ("animal",), OTHERS),
    ("photographs / not", PHOTOGRAPHS, OTHERS),
    ("animals / objects", ("animal",), ("object",)),
)


@dataclass(frozen=True)
class Scored:
    """A figure, and what it is in each bootstrap resample: the same ones for every embedder."""

    value: float
    drawn: np.ndarray

    def __str__(self) -> str:
        least, most = self.interval
        return f"{self.value:.3f} ({least:.3f}-{most:.3f})"

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return tuple(np.quantile(self.drawn, (0.025, 0.975)).tolist())

    def ahead(self, other: Scored) -> str:
        """Return by how much `other` is behind, with the interval of the paired difference."""
        least, most = np.quantile(self.drawn - other.drawn, (0.025, 0.975))
        return f"{self.value - other.value:+.3f} ({least:+.3f} to {most:+.3f})"


@dataclass(frozen=True)
class Crawl:
    """The crawl's readable pictures with what is known of them, and the seed's."""

    stems: list[str]
    kinds: np.ndarray
    roots: np.ndarray
    held_out: np.ndarray
    originals: np.ndarray
    images: list[bytes]
    seeds: list[bytes]


@click.command()
@click.argument("crawl_small", type=click.Path(path_type=Path, exists=True))
@click.option("--embedder", "embedders", multiple=True, help="`descriptor`, a model folder, or "
              "untrained:FOLDER; by default the bundled one, the same untrained, and descriptor.")  # fmt: skip
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Write the figures here.")
def main(crawl_small: Path, embedders: tuple[str, ...], as_json: Path | None) -> None:
    """Print the scores of embedders on the parts of CRAWL_SMALL that nothing was trained on."""
    crawl = _read(crawl_small)
    click.echo(
        f"{len(crawl.seeds)} seed images; of parts {' and '.join(HELD_OUT)} "
        + ", ".join(
            f"{int(((crawl.kinds == kind) & crawl.held_out & crawl.originals).sum())} {kind}"
            for kind in (*PHOTOGRAPHS, *OTHERS)
        )
    )
    found: dict[str, dict[str, Scored]] = {}
    for name in embedders or (str(FOLDER), f"untrained:{FOLDER}", "descriptor"):
        vectors, seeds = _embedded(name, crawl)
        scores = score(crawl, vectors, seeds)
        shown = "bundled" if name == str(FOLDER) else name.replace(str(FOLDER), "bundled")
        first = next(iter(found.values()), None)
        found[shown] = scores
        click.echo(
            f"\n{shown}" + (f"{'the first is ahead by':>{92 - len(shown)}}" if first else "")
        )
        for key, scored in scores.items():
            behind = f"  {first[key].ahead(scored)}" if first else ""
            click.echo(f"  {key:<44} {scored}{behind}")
    if as_json:
        figures = {
            name: {key: [s.value, *s.interval] for key, s in scores.items()}
            for name, scores in found.items()
        }
        as_json.write_text(json.dumps(figures, indent=1) + "\n")


def score(crawl: Crawl, vectors: np.ndarray, seeds: np.ndarray) -> dict[str, Scored]:
    """Return the figures of an embedder's unit vectors [n, d] of the crawl and [m, d] of the seed."""
    similarity = (vectors @ seeds.T).max(1).clip(-1, 1)
    asked = crawl.held_out & crawl.originals
    scores = {}
    for name, positive, negative in AREAS:
        scores[name] = _area(
            similarity[asked & np.isin(crawl.kinds, positive)],
            similarity[asked & np.isin(crawl.kinds, negative)],
        )
    animals = similarity[asked & (crawl.kinds == "animal")]
    for kind in OTHERS:
        others = similarity[asked & (crawl.kinds == kind)]
        if len(others):
            scores[f"animals / {kind}s"] = _area(animals, others)
    photographs = np.isin(crawl.kinds, (*PHOTOGRAPHS, "odd"))
    for name, base in (
        ("copies at precision 0.99, both in the parts", photographs & crawl.held_out),
        ("copies at precision 0.99, one in the parts", photographs),
    ):
        scores[name] = _recall(crawl, vectors, photographs & crawl.held_out, base)
    return scores


def _area(positive: np.ndarray, negative: np.ndarray) -> Scored:
    """Return the area under the ROC curve: how often a positive is ahead of a negative."""
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    rng = np.random.default_rng(0)
    ones, others = len(positive), len(negative)
    drawn = [
        (rng.multinomial(ones, [1 / ones] * ones) / ones)
        @ wins
        @ (rng.multinomial(others, [1 / others] * others) / others)
        for _ in range(RESAMPLES)
    ]
    return Scored(float(wins.mean()), np.array(drawn))


def _recall(crawl: Crawl, vectors: np.ndarray, ends: np.ndarray, base: np.ndarray) -> Scored:
    """Return the share of pairs of copies found at the lowest threshold of that precision.

    Pairs of an image of `ends` and one of `base`; resampled by the original that they stem from.
    """
    one, other = np.flatnonzero(ends), np.flatnonzero(base)
    near = vectors[one] @ vectors[other].T
    mirrored = ends[other][None, :] & (other[None, :] <= one[:, None])
    first, second = np.nonzero(~mirrored & (one[:, None] != other[None, :]))
    order = np.argsort(-near[first, second], kind="stable")
    cosines = near[first, second][order]
    roots, number = np.unique(crawl.roots, return_inverse=True)
    a, b = number[one[first]][order], number[other[second]][order]
    same = a == b
    last = np.append(cosines[1:] != cosines[:-1], True)  # a threshold takes all equal cosines

    def found(times: np.ndarray) -> float:
        weight = np.where(same, times[a], times[a] * times[b]).astype(float)
        right = np.cumsum(weight * same)
        precise = last & (right >= PRECISION * np.cumsum(weight)) & (right > 0)
        return float(right[precise][-1] / right[-1]) if precise.any() else 0.0

    rng = np.random.default_rng(0)
    members = np.unique(np.concatenate([a, b]))
    drawn = []
    for _ in range(RESAMPLES // 4):
        times = np.zeros(len(roots))
        times[members] = rng.multinomial(len(members), [1 / len(members)] * len(members))
        drawn.append(found(times))
    return Scored(found(np.ones(len(roots))), np.array(drawn))


def _read(folder: Path) -> Crawl:
    with (folder / "truth.csv").open(newline="") as stream:
        truth = {row["member"]: row for row in csv.DictReader(stream)}

    def root(stem: str) -> str:
        while truth[stem]["copy_of"]:
            stem = truth[stem]["copy_of"]
        return stem

    crawled = _readable(folder / "crawl", lambda key: truth[Path(key).name]["kind"] != "corrupt")
    stems = [Path(key).name for key in crawled]
    seeds = _readable(folder / "seed", lambda key: True)
    return Crawl(
        stems=stems,
        kinds=np.array([truth[stem]["kind"] for stem in stems]),
        roots=np.array([root(stem) for stem in stems]),
        held_out=np.array([truth[stem]["part"] in HELD_OUT for stem in stems]),
        originals=np.array([not truth[stem]["copy_of"] for stem in stems]),
        images=list(crawled.values()),
        seeds=list(seeds.values()),
    )


def _readable(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for part in list_parts("benchmark", DatasetSettings(path=str(path))):
            with PartReader(part, Path(scratch)) as reader:
                for member in reader.members:
                    if wanted(member.key) and not member.problem:
                        found[member.key] = reader.read(member)
    return dict(sorted(found.items()))


def _embedded(name: str, crawl: Crawl) -> tuple[np.ndarray, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        embedder = load(_settings(name, Path(scratch)), threads=1)

    def vectors(images: list[bytes]) -> np.ndarray:
        rows = []
        for start in range(0, len(images), 32):
            batch = [decode(data, reduce_to=embedder.reduce_to) for data in images[start:][:32]]
            rows.append(embedder.embed([embedder.prepare(image) for image in batch]))
        stored = np.concatenate(rows).astype(np.float16).astype(np.float32)
        return stored / np.linalg.norm(stored, axis=1, keepdims=True).clip(1e-12)

    try:
        return vectors(crawl.images), vectors(crawl.seeds)
    except ImageError as error:
        raise LvdError(f"an image of {name} that truth.csv calls whole is not: {error}") from error


def _settings(name: str, scratch: Path) -> EmbedderSettings:
    if name == "descriptor":
        return EmbedderSettings(kind="descriptor")
    if not name.startswith("untrained:"):
        return settings_for_folder(Path(name))
    import timm
    import torch
    from safetensors.torch import save_file

    folder = Path(name.removeprefix("untrained:"))
    torch.manual_seed(0)
    model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    save_file(model.state_dict(), scratch / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(folder / "config.json", scratch / "config.json")
    return settings_for_folder(scratch)


if __name__ == "__main__":
    main()
