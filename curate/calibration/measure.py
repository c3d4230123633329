"""Stage calibrate: samples the crawl and the seed, and measures the embedder's thresholds on them.

The dedup threshold depends on the crawl alone, so that runs with other seeds share its groups.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from curate.calibration.dedup_threshold import (
    DedupCalibration,
    UnmeasurableError,
    calibrate_dedup,
)
from curate.calibration.edits import edits_of
from curate.calibration.near_pairs import Looked, LookedPairs, look_at_nearest, mark_apart
from curate.calibration.retrieve_threshold import (
    FEWEST,
    RetrieveCalibration,
    calibrate_retrieve,
)
from curate.calibration.same_picture import Thumbnail, thumbnail
from curate.calibration.second_look import FinerLook, Thumbnails
from curate.catalogue.collection import Collection, Numbers
from curate.catalogue.drawn import are_drawn
from curate.catalogue.originals import Originals, load_parts
from curate.embedding.embed import Forwards, preparation
from curate.neighbours.search import unit
from curate.pixels import align, same
from curate.pixels.same import CLEAR, OTHER, Verdict, similarity
from curate.stage import Runner, Stage, Unit, Workers
from curate.state import State
from shared.embedders.embedder import may_use_gpu
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError
from shared.pictures.images import ImageError, decode
from shared.progress import count
from shared.storage.commits import committed

VERSIONS = [11, align.VERSION, same.VERSION]
EDITED_TOGETHER = 25
OTHERS, DRAWN = "others.npz", "drawn.npz"


class CalibrateSettings(BaseModel):
    """How much is measured where a threshold is `auto`."""

    model_config = ConfigDict(extra="forbid")

    originals: int = Field(100, ge=FEWEST)
    """Images that are edited and embedded again, to say which edits are found."""
    seeds: int = Field(300, ge=FEWEST)
    """Seed images that are looked up among the others."""
    crawl_sample: int = Field(20_000, ge=FEWEST)
    """Images of which the nearest pairs are looked at."""
    parts: int = Field(64, ge=1)
    """At most as many parts are sampled."""
    seed: int = 0


def measure_dedup(
    runner: Runner,
    stage: Stage,
    embedder: tuple[EmbedderSettings, int],
    crawl: Collection,
    parts: Path,
    max_pixels: int,
    precision: float,
    settings: CalibrateSettings,
) -> dict[str, Any]:
    """Return the calibration of the dedup threshold; `embedder` is settings and threads.

    Raises UnmeasurableError where the crawl has too few pairs of different pictures.
    """
    shared = (parts, max_pixels, settings)
    runner.run(stage, look, [Unit("look", (crawl, *shared))], note="nearest pairs")
    configured, threads = embedder
    numbers, rows = sample(crawl, settings)
    originals = np.split(numbers[rows], range(EDITED_TOGETHER, len(rows), EDITED_TOGETHER))
    units = [
        Unit(name, (configured, crawl, parts, max_pixels, settings.seed, some), len(some))
        for name, some in zip(edited_units(len(rows)), originals, strict=True)
    ]
    workers = Workers(Forwards, ((configured,), threads), gpus=may_use_gpu(configured))
    runner.run(stage, edit, units, workers=workers, note="edited copies")
    folder = runner.folder(stage)
    made = (folder / "look", [folder / unit.name for unit in units])
    unit_of_precision = Unit(f"dedup-{precision}", (crawl, precision, settings.seed, *made))
    [measured] = runner.run(stage, dedup, [unit_of_precision])
    if "problem" in measured:
        raise UnmeasurableError(measured["problem"])
    return measured


def measure_retrieve(
    runner: Runner,
    stage: Stage,
    crawl: Collection,
    seed: Collection,
    parts: Path,
    max_pixels: int,
    settings: CalibrateSettings,
) -> dict[str, Any]:
    """Return the calibration of the relevance threshold; `parts` are those of the seed."""
    unit = Unit("retrieve", (crawl, seed, parts, max_pixels, settings))
    [measured] = runner.run(stage, retrieve, [unit])
    return measured


def edited_units(originals: int) -> list[str]:
    """Return the names of the units in which so many originals are edited."""
    return [f"edited-{at:06d}" for at in range(-(-originals // EDITED_TOGETHER))]


def sample(
    collection: Collection, settings: CalibrateSettings
) -> tuple[Numbers, Int64[np.ndarray, " originals"]]:
    """Return numbers of a sample of the crawl, and the rows in it of the originals to edit."""
    rng = np.random.default_rng(settings.seed)
    numbers = _sample(collection, settings.crawl_sample, settings.parts, rng)
    _refuse_few(len(numbers), "crawl that filters and lists leave", "dedup")
    rows = rng.choice(len(numbers), min(settings.originals, len(numbers)), replace=False)
    return numbers, np.sort(rows)


def edit(
    state: State,
    embedder: EmbedderSettings,
    collection: Collection,
    parts: Path,
    max_pixels: int,
    seed: int,
    numbers: Numbers,
    *,
    out: Path,
) -> dict[str, Any]:
    """Embed edited copies of images: `numbers.npy` [n] and float32 `edited.npy` [n, e, d]."""
    prepare = preparation(embedder).prepare
    prepared: list[UInt8[np.ndarray, "h w 3"]] = []
    read: list[int] = []
    names: tuple[str, ...] = ()
    hashes = collection.facts(numbers, ["sha256"])["sha256"].to_pylist()
    with Originals(collection, load_parts(parts), out.parent) as originals:
        for number, sha256 in zip(numbers.tolist(), hashes, strict=True):
            picture = _decoded(originals, number, max_pixels)
            if picture is not None:
                copies = edits_of(picture, sha256, seed)
                names = tuple(copies)
                prepared += [prepare(copy) for copy in copies.values()]
                read.append(number)
    if read:
        size = embedder.batch_size
        batches = [prepared[at : at + size] for at in range(0, len(prepared), size)]
        vectors = [state.call("embed", 0, batch).result() for batch in batches]
        edited = np.concatenate(vectors).reshape(len(read), len(names), -1)
        np.save(out / "edited.npy", edited)
    np.save(out / "numbers.npy", np.array(read, np.int64))
    return {"images": len(read), "edits": names}


def look(
    collection: Collection,
    parts: Path,
    max_pixels: int,
    settings: CalibrateSettings,
    *,
    out: Path,
) -> dict[str, Any]:
    """Look at the nearest pairs of a sample of the crawl: `others.npz`, and `drawn.npz` of two drawn ones."""
    numbers, _ = sample(collection, settings)
    with Originals(collection, load_parts(parts), out.parent) as originals:
        found = look_at_nearest(
            unit(collection.vectors(numbers)),
            are_drawn(collection, numbers),
            _thumbnails(originals, numbers, max_pixels),
            _finer_look(originals, numbers, max_pixels),
        )
    kinds = {
        name: mark_apart(pairs, numbers, collection.apart)
        for name, pairs in ((OTHERS, found.others), (DRAWN, found.drawn))
    }
    for name, pairs in kinds.items():
        np.savez(out / name, **vars(pairs))
    return {
        "pairs": len(kinds[OTHERS].one),
        "drawn_pairs": len(kinds[DRAWN].one),
        "drawn_images": found.drawn_images,
    }


def dedup(
    collection: Collection,
    precision: float,
    seed: int,
    looked: Path,
    edited: list[Path],
    *,
    out: Path,
) -> dict[str, Any]:
    """Return the calibration of the dedup threshold, of what `look` and `edit` made, or the `problem`."""
    originals, names, cosines = load_edited(collection, edited)
    try:
        return calibrate_dedup(
            load_looked(looked),
            len(collection.usable),
            precision,
            cosines,
            names,
            are_drawn(collection, originals),
            seed,
        ).to_dict()
    except UnmeasurableError as error:
        return {"problem": str(error)}


def load_looked(folder: Path) -> Looked:
    """Return the pairs that `look` looked at; their rows are those of the sample."""
    stats = committed(folder)
    assert stats is not None, folder
    return Looked(_pairs(folder / OTHERS), _pairs(folder / DRAWN), stats["drawn_images"])


def _pairs(file: Path) -> LookedPairs:
    with np.load(file) as saved:
        pairs = {name: saved[name] for name in saved.files}
    numbers = {name: pairs.pop(name).item() for name in ("images", "lowest", "looks")}
    return LookedPairs(**pairs, **numbers)


def load_edited(
    collection: Collection, folders: list[Path]
) -> tuple[Numbers, tuple[str, ...], Float32[np.ndarray, "n e"]]:
    """Return numbers of originals, names of edits, and the cosines of what `edit` made to them."""
    units = [(folder, committed(folder) or {}) for folder in folders]
    units = [(folder, stats) for folder, stats in units if stats["images"]]
    if not units:
        raise LvdError("no sampled image of the crawl can be read any more: is it still there?")
    numbers = np.concatenate([np.load(folder / "numbers.npy") for folder, _ in units])
    copies = np.concatenate([np.load(folder / "edited.npy") for folder, _ in units])
    cosines = np.einsum("ned,nd->ne", copies, unit(collection.vectors(numbers)))
    return numbers, tuple(units[0][1]["edits"]), cosines.clip(-1, 1).astype(np.float32)


def retrieve(
    crawl: Collection,
    seed: Collection,
    parts: Path,
    max_pixels: int,
    settings: CalibrateSettings,
    *,
    out: Path,
) -> dict[str, Any]:
    """Return the calibration of the relevance threshold: leave-one-out seed similarities.

    `parts` are those of the seed.
    """
    seeds, rows, crawled = sample_both(crawl, seed, settings)
    with Originals(seed, load_parts(parts), out.parent) as originals:
        calibration = calibrate_retrieve(
            unit(seed.vectors(seeds)),
            unit(crawl.vectors(crawled)),
            rows,
            _thumbnails(originals, seeds, max_pixels),
        )
    return calibration.to_dict()


def sample_both(
    crawl: Collection, seed: Collection, settings: CalibrateSettings
) -> tuple[Int64[np.ndarray, " s"], Int64[np.ndarray, " left_out"], Int64[np.ndarray, " c"]]:
    """Return numbers of a sample of the seed, the rows in it to leave out, and of the crawl."""
    rng = np.random.default_rng(settings.seed)
    seeds = _sample(seed, settings.crawl_sample, settings.parts, rng)
    _refuse_few(len(seeds), "seed", "retrieve")
    rows = np.sort(rng.choice(len(seeds), min(settings.seeds, len(seeds)), replace=False))
    return seeds, rows, _sample(crawl, settings.crawl_sample, settings.parts, rng)


def report(measured: dict[str, dict[str, Any]]) -> str:
    """Return both calibrations as text; the last line can be pasted behind `lvd-curate run`."""
    texts = {
        "dedup": DedupCalibration.restored(measured["dedup"]).render(),
        "retrieve": RetrieveCalibration.restored(measured["retrieve"]).render(),
    }
    lines = [line for name, text in texts.items() for line in (f"{name}.threshold", text, "")]
    sets = [f"--set {name}.threshold={found['threshold']}" for name, found in measured.items()]
    of_drawn = measured["dedup"]["drawn_threshold"]
    if of_drawn > measured["dedup"]["threshold"]:
        sets.append(f"--set dedup.drawn_threshold={of_drawn}")
    return "\n".join([*lines, " ".join(sets)])


def _sample(
    collection: Collection, size: int, most_parts: int, rng: np.random.Generator
) -> Numbers:
    """Return numbers of distinct usable images of a few parts, in order."""
    usable = collection.usable
    homes = collection.part_of(usable)
    named = np.unique(homes)
    if len(named) > most_parts:
        usable = usable[np.isin(homes, rng.choice(named, most_parts, replace=False))]
    return np.sort(rng.choice(usable, min(size, len(usable)), replace=False))


def _refuse_few(number: int, role: str, stage: str) -> None:
    if number < FEWEST:
        few = "is" if number == 1 else "are"
        raise LvdError(
            f"{count(number, 'image')} of the {role} {few} too few to calibrate on (it takes {FEWEST}): "
            f"say --set {stage}.threshold=..., or declare it with the embedder"
        )


def _decoded(originals: Originals, number: int, max_pixels: int) -> Image.Image | None:
    data = originals.read(number)
    try:
        return decode(data, max_pixels=max_pixels)
    except ImageError:
        return None


def _finer_look(originals: Originals, numbers: Numbers, max_pixels: int) -> FinerLook:
    """Return what tells by the pixels: only `CLEAR` copies are, as a first look was in doubt."""

    def of(one: int, other: int) -> Verdict:
        first, second = (_decoded(originals, int(numbers[row]), max_pixels) for row in (one, other))
        if first is None or second is None:
            return "unsure"
        found = similarity(first, second)
        return "same" if found >= CLEAR else "other" if found < OTHER else "unsure"

    return of


def _thumbnails(originals: Originals, numbers: Numbers, max_pixels: int) -> Thumbnails:
    def of(row: int) -> Thumbnail | None:
        picture = _decoded(originals, int(numbers[row]), max_pixels)
        return None if picture is None else thumbnail(picture)

    return of
