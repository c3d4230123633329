"""The index of a dataset: where in which shard each sample's bytes are, made once and mapped from disk."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.datasets.dataset import DatasetSettings, Part, list_parts
from shared.datasets.parts import Member, PartReader
from shared.datasets.ranged_tars import list_remote_tar
from shared.datasets.single_images import direct
from shared.errors import LvdError
from shared.keys import shown
from shared.pictures.images import ImageError
from shared.progress import stage_bar, warn
from shared.shard_folder.shard_ranges import ImageRange, MisfitError, read_ranges
from shared.storage.files import fingerprint, is_disk_full, reraise_disk_full, sync
from shared.storage.remote import is_remote, locate
from train.data.file_ranges import FileRanges, Range
from train.data.index_files import note_use, remove_unused

_COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("path", pa.binary()),  # of an image in a folder, as the file system has it; "" in a tar
        ("problem", pa.string()),
    ]
)
_ABOUT = b"lvd"
_LISTED_ALONE = 1 << 30
"""Bytes of local shards that are listed before further processes have started."""
_FETCHED_AT_ONCE = 32
"""Remote shards that are listed side by side: each waits for one small read after another."""
_WARNINGS = 5


@dataclass(frozen=True)
class IndexedPart:
    """A tar, or a share of a folder's images: its place, its size in bytes, its samples."""

    name: str
    location: str
    """Of the tar, or of the folder that the images' paths are relative to; a path or a URL."""
    folder: bool
    nbytes: int
    samples: int


class SampleIndex(Protocol):
    """The samples of whatever is trained on, by number."""

    fingerprint: str
    """Says which images these are, wherever they lie."""

    def __len__(self) -> int: ...

    def key(self, number: int) -> str:
        """Return what a sample is called."""

    def read(self, number: int) -> bytes:
        """Return a sample's bytes; ImageError with the reason where they are not to be had."""

    def read_each(self, numbers: Sequence[int]) -> Iterator[bytes | ImageError]:
        """Yield each sample's bytes or the reason why not; remote ones are fetched side by side."""


class MappedIndex:
    """A memory-mapped Arrow file with a record batch for each part and a row for each sample.

    Processes of one machine share its pages, a copy that is sent to another process is the file's
    name, and nothing is kept in memory for a sample.
    """

    def __init__(self, path: Path, sizes: Sequence[int], fingerprint: str) -> None:
        """Map the file at `path`, whose parts have so many samples."""
        self.path = path
        self.fingerprint = fingerprint
        """Says which images these are: the keys and sizes, wherever they lie."""
        self.sizes: NDArray[np.int64] = np.array(sizes, np.int64)
        """[parts] numbers of samples."""
        self._table = pa.ipc.open_file(pa.memory_map(str(path)))
        self._ends = np.cumsum(self.sizes)
        self._files = FileRanges()

    def __reduce__(self) -> tuple[type[MappedIndex], tuple[Path]]:
        return type(self), (self.path,)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def key(self, number: int) -> str:
        """Return the key of a sample."""
        part, row = self._place(number)
        return self._table.get_batch(part).column("key")[row].as_py()

    def read(self, number: int) -> bytes:
        """Return a sample's bytes; ImageError with the reason where they are not to be had."""
        (data,) = self.read_each([number])
        if isinstance(data, ImageError):
            raise data
        return data

    def read_each(self, numbers: Sequence[int]) -> Iterator[bytes | ImageError]:
        """Yield each sample's bytes or the reason why not; remote ones are fetched side by side."""
        wanted = [self._range(number) for number in numbers]
        answers = self._files.read([w for w in wanted if isinstance(w, Range)])
        for range_or_reason in wanted:
            yield next(answers) if isinstance(range_or_reason, Range) else range_or_reason

    def _place(self, number: int) -> tuple[int, int]:
        """Return the part of a sample, and its row there."""
        part = int(np.searchsorted(self._ends, number, side="right"))
        return part, int(number) - int(self._ends[part] - self.sizes[part])

    def _row(self, number: int, *columns: str) -> list[Any]:
        """Return what stands in columns of a sample's row."""
        part, row = self._place(number)
        rows = self._table.get_batch(part)
        return [rows.column(name)[row].as_py() for name in columns]

    def _range(self, number: int) -> Range | ImageError:
        raise NotImplementedError


class ShardIndex(MappedIndex):
    """All samples of a dataset, by number: parts sorted by name, in each its samples by key.

    24 bytes a sample and its key's text, for a folder of images its path's too.
    """

    weights = None

    def __init__(self, path: Path) -> None:
        """Map the file that `read_index` wrote."""
        about = json.loads(pa.ipc.open_file(pa.memory_map(str(path))).schema.metadata[_ABOUT])
        self.parts = [IndexedPart(**part) for part in about["parts"]]
        super().__init__(path, [part.samples for part in self.parts], about["fingerprint"])

    def _range(self, number: int) -> Range | ImageError:
        part = self.parts[self._place(number)[0]]
        offset, size, path, problem = self._row(number, "offset", "size", "path", "problem")
        if problem:
            return ImageError(problem)
        if part.folder:
            return Range(locate(part.location, os.fsdecode(path)), 0, size, size)
        return Range(part.location, offset, size, part.nbytes)


def read_index(shards: str, folder: Path) -> ShardIndex:
    """Return the index of the images that `shards` names, made in `folder` where it is not there.

    `shards` is a folder of WebDataset tars or of images, a tar, a glob or a brace list, or an
    fsspec URL of these. What is said of a shard is kept as `<fingerprint of the shard>.parquet`:
    stopped half-way, listing goes on from there, and of a dataset that changed only the changed
    shards are listed again. Where stage one has written beside a shard what lies where in it, and
    that fits the shard, it is taken; other tars are listed from their headers, remote ones by
    ranged reads. Runs may share the folder, and use it at once; what none of them has opened for
    `KEPT_DAYS` is removed from it. Raises LvdError where nothing is
    there, or where a shard's images are not to be read one by one (a compressed tar, Parquet).
    """
    parts = list_parts("--shards", DatasetSettings(path=shards))
    stamp = fingerprint([[part.name, locate(part.root, ""), part.fingerprint] for part in parts])
    path = folder / f"{stamp}.arrow"
    if not path.exists():
        with reraise_disk_full(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _list_new(parts, folder)
            _join(parts, path, shards)
    note_use([path, *(_listing(part, folder) for part in parts)])
    remove_unused(folder)
    return ShardIndex(path)


def _list_new(parts: Sequence[Part], folder: Path) -> None:
    """List the parts that are not listed yet, several at a time where that is worth it."""
    new = [part for part in parts if not _listing(part, folder).exists()]
    if not new:
        return
    problems: list[str] = []
    with _mapper(new) as mapped:
        for found in mapped(partial(_list_part, folder=folder), new):
            problems += found
    for problem in problems[:_WARNINGS]:
        warn(problem)
    if len(problems) > _WARNINGS:
        warn(f"and {len(problems) - _WARNINGS} more problems of shards")


@contextmanager
def _mapper(parts: Sequence[Part]) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a `map` that works on several parts at a time, under a bar, where that is faster."""
    pool: Executor
    if is_remote(parts[0].root):
        pool = ThreadPoolExecutor(_FETCHED_AT_ONCE)
    elif len(parts) > 1 and sum(part.nbytes for part in parts) > _LISTED_ALONE:
        # Not forked: this process may hold a GPU, or threads.
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(len(parts), os.cpu_count() or 1), mp_context=spawn)
    else:
        yield map
        return

    def mapped(function: Callable[[Part], Any], over: Sequence[Part]) -> Iterator[Any]:
        with stage_bar("index", len(over), "shards") as bar:
            for result in pool.map(function, over):
                bar.advance()
                yield result

    try:
        yield mapped
    except BrokenProcessPool as error:
        raise LvdError(
            "a process that lists shards died, perhaps for want of memory: run the same command "
            "again (what is listed is kept)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _list_part(part: Part, folder: Path) -> list[str]:
    """Write what is in one part to `folder`, and return what is wrong with it."""
    place = shown(locate(part.root, part.paths[0]))
    try:
        if part.format == "list":
            raise LvdError(f"--shards: {place} is a selection list: name it with --select")
        if not direct(part):
            kind = "a Parquet file" if part.format == "parquet" else "a compressed tar"
            raise LvdError(
                f"--shards: {place} is {kind}, whose images cannot be read one by one: unpack it "
                "to a plain tar or a folder of images, or let lvd-curate write shards"
            )
        members, problems = _members(part, folder)
    except OSError as error:
        if is_disk_full(error):
            raise
        reason = error.strerror or f"{type(error).__name__} {' '.join(str(error).split())}"
        raise LvdError(
            f"--shards: {place} cannot be listed: {reason}: mend that and run the same command "
            "again (what is listed is kept)"
        ) from error
    paths = {shown(path): path for path in part.paths} if part.format == "folder" else {}
    table = pa.table(
        {
            "key": [member.key for member in members],
            "offset": [member.offset or 0 for member in members],
            "size": [0 if member.problem else member.size for member in members],
            "path": [os.fsencode(paths.get(member.member, "")) for member in members],
            "problem": [member.problem for member in members],
        },
        schema=_COLUMNS,
    )
    with written(_listing(part, folder)) as beside:
        pq.write_table(table, beside)
    return [f"{place}: {problem}" for problem in problems]


def _members(part: Part, folder: Path) -> tuple[Sequence[Member], list[str]]:
    """Return a part's images sorted by key, and what is wrong with it, as `PartReader` has them."""
    problems: list[str] = []
    if part.format == "tar":
        location = locate(part.root, part.paths[0])
        size = part.sizes[0]
        if part.table is not None:
            table = locate(part.root, part.table)
            try:
                if (ranges := read_ranges(table, location, size)) is not None:
                    return _in_order(part, ranges), problems
            except MisfitError as error:
                problems.append(
                    f"what {shown(part.table)} says of its members is not believed, and they are "
                    f"listed anew: {error}"
                )
        if is_remote(location) and size is not None:
            return list_remote_tar(part, problems), problems
    with PartReader(part, folder) as reader:
        return reader.members, problems + reader.problems


def _in_order(part: Part, ranges: Sequence[ImageRange]) -> list[Member]:
    members = [Member(f"{part.name}/{r.key}", r.key, r.offset, r.size) for r in ranges]
    return sorted(members, key=lambda member: member.key)


def _join(parts: Sequence[Part], path: Path, shards: str) -> None:
    """Write the table of all parts that hold anything, one record batch each, to `path`."""
    held: list[IndexedPart] = []
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        rows = pq.read_table(_listing(part, path.parent), columns=["key", "size"])
        digest.update(json.dumps(rows.to_pydict()).encode())
        if rows.num_rows:
            folder = part.format == "folder"
            location = part.root if folder else locate(part.root, part.paths[0])
            held.append(IndexedPart(part.name, location, folder, part.nbytes, rows.num_rows))
    if not held:
        raise LvdError(f"--shards {shards}: no image is in its {len(parts)} shards: name others")
    about = {"parts": [asdict(part) for part in held], "fingerprint": digest.hexdigest()}
    schema = _COLUMNS.with_metadata({_ABOUT: json.dumps(about)})
    with written(path) as beside, pa.ipc.new_file(str(beside), schema) as file:
        for part in parts:
            rows = pq.read_table(_listing(part, path.parent), schema=_COLUMNS)
            if rows.num_rows:
                file.write_batch(rows.combine_chunks().to_batches()[0])


def _listing(part: Part, folder: Path) -> Path:
    """Return the file with what is in a part, wherever else parts of the same names and times are."""
    return folder / f"{fingerprint([locate(part.root, ''), part.fingerprint], size=16)}.parquet"


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a path to write; what was written appears at `path` whole or not at all."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # of one of several machines
    try:
        yield beside
        sync(beside)
        beside.rename(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)
