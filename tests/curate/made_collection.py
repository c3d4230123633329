"""Makes embedded and catalogued datasets from given vectors, and takes them through the stages."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.catalogue import collection
from curate.catalogue.collection import Collection, PartOutputs
from curate.catalogue.content import key_prefix
from curate.catalogue.exported import Exported
from curate.catalogue.part_files import COLUMNS, FACTS, SCORES, VALID, VECTORS
from curate.catalogue.write import Judged, catalogue
from curate.dedup import hashes, holdout
from curate.dedup.bar import Bar
from curate.dedup.chains import begin, follow, look, look_in_seed, write_chains
from curate.dedup.completeness import add_up, count_found, draw_sample
from curate.dedup.groups import group
from curate.dedup.keep import NUMBER, POLICIES, rank_contents
from curate.dedup.members import list_members, ranges_of
from curate.dedup.near import DedupSettings, ask, search, search_pool
from curate.dedup.probes import find_heaps
from curate.dedup.settle import settle, write_settled
from curate.dedup.several import Several
from curate.filters.lists import CompiledList
from curate.filters.quality import QualitySettings
from curate.filters.scores import FilterSettings, score_column
from curate.neighbours import in_dataset
from curate.neighbours.cluster import ClusterSettings, assign, buckets, centroids, members
from curate.neighbours.clusters import Clusters
from curate.retrieval import candidates
from curate.retrieval import nearest_seeds as retrieve
from curate.retrieval.threshold import choose_relevant
from shared.datasets.dataset import Part


@dataclass(frozen=True)
class Made:
    """An image as the stage embed would describe it; without a vector it is not embedded."""

    key: str
    vector: Sequence[float] | None = None
    size: tuple[int, int] = (64, 64)
    nbytes: int = 1000
    content: str | None = None
    problem: str = ""
    contrast: float = 50.0
    scores: dict[str, float | None] = field(default_factory=dict)
    url: str | None = "https://example.org/image"
    caption: str | None = None
    phash: str | None = None

    @property
    def sha256(self) -> str:
        """Hash of the content, which is the key where none is given."""
        return hashlib.sha256((self.content or self.key).encode()).hexdigest()


def made_part(name: str, kind: str = "tar") -> Part:
    """Return a part that stands for no file."""
    return Part(name, kind, "/nowhere", (f"{name}.{kind}",), (0,), None, "0" * 32, 0)


def write_part(
    work: Path, name: str, images: Sequence[Made], prefix="", columns: Sequence[str] = (), dim=4
) -> PartOutputs:
    """Write the facts, scores and vectors of a part as `curate.embedding.embed` does."""
    images = sorted(images, key=lambda image: image.key)
    values = {
        "name": [image.key.removeprefix(prefix) for image in images],
        "member": [image.key.rpartition("/")[2] + ".jpg" for image in images],
        "url": [image.url for image in images],
        "caption": [image.caption for image in images],
        "sha256": [image.sha256 for image in images],
        "width": [None if image.problem else image.size[0] for image in images],
        "height": [None if image.problem else image.size[1] for image in images],
        "format": [None if image.problem else "jpeg" for image in images],
        "bytes": [image.nbytes for image in images],
        "offset": [512 * place for place, _ in enumerate(images)],
        "problem": [image.problem for image in images],
        "contrast": [image.contrast for image in images],
    }
    place = _fresh(work / "made")
    place.mkdir(parents=True)
    pq.write_table(pa.table(values, COLUMNS), place / FACTS, compression="zstd")
    scores = {
        score_column(column): pa.array([image.scores.get(column) for image in images], pa.float64())
        for column in columns
    }
    if columns:
        pq.write_table(pa.table(scores), place / SCORES, compression="zstd")
    vectors = np.zeros((len(images), dim), np.float16)
    for row, image in enumerate(images):
        if image.vector is not None:
            vectors[row] = image.vector
    np.save(place / VECTORS, vectors)
    np.save(place / VALID, np.array([image.vector is not None for image in images], bool))
    folder = str(place.relative_to(work))
    looks = []
    if any(image.phash for image in images):
        column = pa.array([image.phash for image in images], pa.string())
        pq.write_table(pa.table({"phash": column}), place / "phash.parquet")
        looks.append(f"{folder}/phash.parquet")
    return PartOutputs(name, prefix, folder, folder if columns else None, folder, not prefix, looks)


def made_collection(
    work: Path,
    images: Sequence[Made],
    *,
    parts: Sequence[Part] | None = None,
    name: str = "crawl",
    quality: QualitySettings | None = None,
    filters: Sequence[FilterSettings] = (),
    lists: Sequence[CompiledList] = (),
    dim: int = 4,
    exported: Exported | None = None,
) -> Collection:
    """Return the catalogue of images, each in the part that its key names up to the last slash.

    Where none of them has a vector, `dim` says how long one would be.

    With `parts` given, an image is in the part of the longest name that its key starts with; what
    fits none is dealt to the folder parts.
    """
    dim = next((len(image.vector) for image in images if image.vector is not None), dim)
    if parts is None:
        names = dict.fromkeys(image.key.rpartition("/")[0] for image in images)
        parts = [made_part(part) for part in names]
    dealt = defaultdict(list)
    folders = [part.name for part in parts if part.format == "folder"]
    for image in images:
        fits = [part.name for part in parts if image.key.startswith(part.name + "/")]
        bucket = hashlib.sha256(image.key.encode()).digest()[0] % max(1, len(folders))
        dealt[max(fits, key=len) if fits else folders[bucket]].append(image)
    columns = sorted({entry.column for entry in filters})
    outputs = [
        write_part(work, part.name, dealt[part.name], key_prefix(part), columns, dim)
        for part in sorted(parts, key=lambda part: part.name + "/")
    ]
    home = _fresh(work / "catalogue" / name)
    home.mkdir(parents=True)
    catalogue(outputs, work, Judged(quality, list(filters), tuple(lists), exported), out=home)
    return Collection(home)


def from_vectors(work: Path, vectors: np.ndarray, order=None, **options) -> Collection:
    """Return a collection whose image number n has vector n; the worst image may be the first.

    `order` is the one in which the images arrive.
    """
    sides = np.random.default_rng(len(vectors)).integers(50, 60, (len(vectors), 2)).tolist()
    images = [
        Made(f"part-{row // 50:03d}/{row:06d}", vector, tuple(side))
        for row, (vector, side) in enumerate(zip(vectors, sides, strict=True))
    ]
    order = range(len(images)) if order is None else order
    return made_collection(work, [images[row] for row in order], **options)


def clustered(
    collection: Collection,
    work: Path,
    settings: ClusterSettings | None = None,
    block=10**9,
    bucket=10**9,
) -> tuple[Clusters, list[Path]]:
    """Take a collection through the stage cluster.

    `block` is the images of a unit of `assign`, `bucket` about those of one of `members`.
    """
    home = _fresh(work / "cluster")
    centers = _folder(home / "centroids")
    centroids(collection, settings or ClusterSettings(), 1, out=centers)
    assigned = []
    for start in range(0, len(collection), block):
        assigned.append(_folder(home / f"assign-{start:06d}"))
        stop = min(start + block, len(collection))
        assign(collection, centers, start, stop, 1, out=assigned[-1])
    ranges = buckets(assigned, bucket)
    folders, images = [], 0
    for first, last in ranges:
        folders.append(_folder(home / f"members-{first:06d}"))
        images += members(centers, assigned, first, last, out=folders[-1])["images"]
    return Clusters(centers, tuple(folders), tuple(ranges), images), assigned


def grouped(
    collection: Collection,
    clusters: Clusters,
    work: Path,
    threshold: float | Bar,
    settings: DedupSettings | None = None,
) -> tuple[Path, int]:
    """Take a collection through the stage dedup; return its groups and how many passes there were."""
    settings = settings or DedupSettings()
    bar = threshold if isinstance(threshold, Bar) else Bar(threshold, threshold)
    home = _fresh(work / "dedup")
    ranks, before = ranked(collection, home, settings), None
    if settings.hash != "none":
        before = _hashed(collection, ranks, home, settings)
    covered = before
    for number in range(1000):
        out = _folder(home / f"pass-{number}")
        searched = searched_for(clusters, ranks, out, bar, settings, before)
        after = _folder(home / f"groups-{number}")
        per_image = settings.edges_per_image
        settles = POLICIES[settings.keep].central or settings.chain_floor is not None
        stays = 0 if settles else len(collection.exported)
        result = group(ranks, searched, settings.groups, per_image, before, stays, out=after)
        before = after
        if not result["undecided"]:
            if settles:
                before = _settled(collection, ranks, before, covered, home, bar, settings)
            return before, number + 1
    raise AssertionError("the passes do not end")


def searched_for(
    clusters: Clusters,
    ranks: Path,
    home: Path,
    bar: Bar,
    settings: DedupSettings,
    before: Path | None = None,
) -> list[Path]:
    """Search clusters for copies once; return the units with the edges."""
    asked = []
    if settings.search == "clusters":
        asked = asked_for(clusters, home, bar.threshold, settings, before)
    searched = []
    for first, last in clusters.ranges:
        searched.append(_folder(home / f"search-{first:06d}"))
        how = first, last, bar, settings, before, 1
        if settings.search == "pool":
            search_pool(ranks, clusters, *how, out=searched[-1])
        else:
            search(ranks, clusters, asked, *how, out=searched[-1])
    return searched


def asked_for(
    clusters: Clusters,
    home: Path,
    threshold: float,
    settings: DedupSettings,
    before: Path | None,
) -> list[Path]:
    """Find where each image is searched; return the units of all ranges."""
    heaps, asked = _heaped(clusters, home, threshold), []
    for first, last in clusters.ranges:
        asked.append(_folder(home / f"ask-{first:06d}"))
        how = threshold, settings, before, 1
        ask(clusters, heaps, first, last, *how, out=asked[-1])
    return asked


def _heaped(clusters: Clusters, home: Path, threshold: float) -> Path:
    out = _folder(home / "heaps")
    find_heaps(clusters, threshold, 1, out=out)
    return out


def measured_recall(
    collection: Collection,
    clusters: Clusters,
    work: Path,
    threshold: float,
    settings: DedupSettings,
) -> dict:
    """Return how complete the search for copies is by a sample."""
    home, counted, bar = _fresh(work / "completeness"), [], Bar(threshold, threshold)
    sample = _folder(home / "sample")
    heaps = None if settings.search == "pool" else _heaped(clusters, home, threshold)
    drawn = draw_sample(collection, clusters, heaps, bar, settings, 1, out=sample)
    for first, last in clusters.ranges:
        out = _folder(home / f"found-{first:06d}")
        how = first, last, heaps, bar, settings, 1
        counted.append(count_found(clusters, sample, *how, out=out))
    return add_up(drawn["queries"], counted)


def ranked(collection: Collection, work: Path, settings: DedupSettings | None = None) -> Path:
    """Return the folder of the ranks of a collection's contents."""
    settings = settings or DedupSettings()
    out = _folder(_fresh(work / "ranks"))
    rank_contents(collection, settings.keep, settings.seed, out=out)
    return out


def best_first(collection: Collection, work: Path) -> np.ndarray:
    """Return the numbers of the images that stand for their contents, from best to worst."""
    return np.load(ranked(collection, work) / NUMBER)


def _hashed(collection, ranks, home, settings) -> Path:
    fitted, out, blocks = _folder(home / "fit"), _folder(home / "hashed"), []
    hashes.fit(collection, settings.hash, settings.seed, out=fitted)
    for start, stop in collection.blocks():
        blocks.append(_folder(home / f"hash-{start:06d}"))
        hashes.hash_pictures(collection, settings.hash, fitted, start, stop, out=blocks[-1])
    hashes.cover_copies(ranks, blocks, len(collection.exported), out=out)
    return out


def _settled(collection, ranks, groups, covered, home, bar, settings) -> Path:
    listed, out = _folder(home / "components"), _folder(home / "settled")
    list_members(collection, groups, out=listed)
    folders = []
    for first, last in ranges_of(listed):
        folders.append(_folder(home / f"settle-{first:06d}"))
        central, stays = POLICIES[settings.keep].central, len(collection.exported)
        how = (bar, central, settings.chain_floor, 1, stays)
        settle(collection, ranks, listed, covered, first, last, *how, out=folders[-1])
    write_settled(ranks, groups, folders, out=out)
    return out


def searched(
    crawl: Collection,
    groups: Path,
    seed: Collection,
    holdouts: Sequence[Collection],
    work: Path,
    *,
    k: int = 5,
    threshold: float = 0.9,
    dedup: float | None = None,
) -> tuple[Path | None, list[Path]]:
    """Take a collection through the stages holdout and retrieve; return the folders of both.

    `threshold` is that of holdouts, `dedup` that of copies, which is the same unless it is given.
    """
    home = _fresh(work / "searched")
    held, retrieved = [], []
    for start, stop in crawl.blocks():
        if holdouts:
            held.append(_folder(home / f"holdout-{start:06d}"))
            holdout.search(crawl, list(holdouts), start, stop, threshold, 1, out=held[-1])
        retrieved.append(_folder(home / f"retrieve-{start:06d}"))
        retrieve.search(crawl, groups, seed, start, stop, k, 1, out=retrieved[-1])
    if not holdouts:
        return None, retrieved
    return traced(crawl, held, home, threshold if dedup is None else dedup), retrieved


def traced(
    crawl: Collection,
    held: Sequence[Path],
    work: Path,
    threshold: float,
    stands: Path | None = None,
    clusters: Clusters | None = None,
    seeds: Sequence[tuple[Collection, list[Path]]] = (),
    block: int = 10**9,
) -> Path:
    """Return the folder of what holdouts drop, of what `holdout.search` found of crawl and seeds.

    `block` is the images of a unit of `look_in_seed`.
    """
    clusters = clusters or clustered(crawl, _fresh(work / "for-chains"))[0]
    images = Several((crawl, *(seed for seed, _ in seeds)))
    hits = [list(held), *(own for _, own in seeds)]
    links, home = _folder(work / "links-0"), work
    told = begin(images, hits, out=links)
    while told["open"]:
        found = []
        for first, last in clusters.ranges:
            found.append(_folder(home / f"{links.name}-look-{first:06d}"))
            look(images, clusters, links, first, last, threshold, 1, out=found[-1])
        for place, (seed, _) in enumerate(seeds, 1):
            for start in range(0, len(seed), block):
                found.append(_folder(home / f"{links.name}-seed-{place}-{start:06d}"))
                how = (min(start + block, len(seed)), threshold, 1)
                look_in_seed(images, place, links, start, *how, out=found[-1])
        after = _folder(home / f"{links.name}-after")
        told = follow(images, stands, None, links, found, out=after)
        links = after
    out = _folder(work / "chains")
    write_chains(images, links, hits, out=out)
    return out


def candidates_of(
    crawl: Collection, groups: Path, dropped: Path | None, retrieved: Sequence[Path], work: Path
) -> Path:
    """Return the folder of the candidates of a seed."""
    out = _folder(_fresh(work / "candidates"))
    candidates.find(crawl, groups, dropped, [], list(retrieved), out=out)
    return out


def chosen_by_threshold(
    found: Path, threshold: float, target: float | None, work: Path
) -> tuple[Path, dict]:
    """Return the folder of what the strategy `threshold` chooses, and its threshold and target."""
    out = _folder(_fresh(work / "chosen"))
    return out, choose_relevant(found, threshold, target, out=out)


@contextmanager
def blocks_of(size: int) -> Iterator[None]:
    """Make the units of the map stages, and the files they are looked up in, hold `size` images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection, "block_size", lambda images: size)
        patch.setattr(collection, "KEYS_TOGETHER", size)
        patch.setattr(in_dataset, "TOGETHER", size)
        yield


def deduped(
    collection: Collection, work: Path, threshold: float, settings: DedupSettings | None = None
) -> np.ndarray:
    """Return who stands for every image, after all stages up to dedup."""
    clusters, _ = clustered(collection, work)
    return np.load(grouped(collection, clusters, work, threshold, settings)[0] / REPRESENTATIVE)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def clumps(seed: int, centers: int, each: int, dim: int, spread: float) -> np.ndarray:
    """Return float32 unit vectors [centers * each, dim] in clumps, some of them near copies."""
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((centers, dim)) * (1 + rng.random((centers, 1)))
    scale = rng.choice([0.02, 0.1, spread], (centers, each, 1))
    vectors = (middle[:, None] + scale * rng.standard_normal((centers, each, dim))).reshape(-1, dim)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def exact_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the float64 cosines [n, m] of stored vectors."""
    a, b = (np.asarray(x, np.float16).astype(np.float64) for x in (a, b))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300) for x in (a, b))
    return a @ b.T


def clear(cosines: np.ndarray, threshold: float) -> float:
    """Return a threshold near another that no pair comes near, as rounding might decide of it."""
    values = np.unique(cosines)
    at = np.searchsorted(values, threshold)
    near = values[max(0, at - 30) : at + 30]
    widest = np.argmax(np.diff(near))
    assert near[widest + 1] - near[widest] > 2e-6
    return float(near[widest] + near[widest + 1]) / 2


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def _fresh(path: Path) -> Path:
    """Return a folder below `path` that is not there yet: tests make many of a kind."""
    return path / f"{len(list(path.glob('*'))):04d}"


REPRESENTATIVE = "representative.npy"
