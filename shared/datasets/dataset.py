"""Declares datasets and divides each into parts, the unit of reading, retry and resume."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shared.datasets.filetypes import kind_of, without_extension
from shared.datasets.listing import BROKEN, File, ListingError, Place, expand
from shared.datasets.outputs import RESULT_MARKER, WORK_MARKER, is_listed, without_outputs
from shared.errors import LvdError
from shared.keys import bucket, shown, stem
from shared.progress import warn
from shared.storage import failures
from shared.storage.files import fingerprint
from shared.storage.remote import locate, open_binary, read_head

Format = Literal["folder", "tar", "parquet", "list"]


class DatasetSettings(BaseModel):
    """Where a dataset's images are and how to read them."""

    model_config = ConfigDict(extra="forbid")

    path: str | list[str] = Field(default_factory=list)
    """A folder of images, tars or Parquet files, the result of a run, one such file, a glob, a brace
    list, an fsspec URL of these, or a list of them."""
    text: list[str] = Field(default_factory=list)
    """In place of a path, for a seed: captions of what is wanted."""
    format: Literal["auto", "folder", "tar", "parquet", "list"] = "auto"
    """What to read there; `auto` looks. `list`: Parquet files as `export.format=list` writes them."""
    licence: str = ""
    """The rights in the images, for the reader of the configuration and the datasheet."""
    source: str = ""
    """Where the images are from and who collected them, for the datasheet."""
    homepage: str = ""
    """The dataset's page, for the datasheet."""
    image_column: str | None = None
    """The Parquet column that holds image bytes; by default the only one that can."""
    key_column: str | None = None
    """The Parquet column whose values are keys; by default `key` or `__key__`, where unique."""
    folder_parts: int = Field(default=32, ge=1)
    """How many parts a folder of images is dealt to."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> DatasetSettings:
        if bool(self.path) == bool(self.text):
            raise ValueError("a dataset has a path, where its images are, or text, for a seed")
        if len(set(self.text)) < len(self.text) or not all(each.strip() for each in self.text):
            raise ValueError("text has captions that are empty or stand there twice")
        return self


@dataclass(frozen=True)
class Part:
    """One unit of input: a tar, a Parquet file, a file of a list, or a share of a folder's images.

    `paths` and `table` (img2dataset's Parquet beside a tar) are relative to `root`, a local folder
    or a URL; `sizes` are the bytes of `paths`, -1 of a link that leads nowhere, None where the
    storage does not tell; `nbytes` is the sum of those that are known. A folder's `paths` hold its
    images, their sidecars, and what only its content can tell from an image.
    `fingerprint` changes when the content does, as far as names, sizes and modification times (or
    ETags) tell. `stamp` changes with the place and with every change of a file there; it is "" where
    the storage does not tell. `key_prefix` stands before a folder image's key; it is empty but for a
    list of several folders.
    """

    name: str
    format: Format
    root: str
    paths: tuple[str, ...]
    sizes: tuple[int | None, ...]
    table: str | None
    fingerprint: str
    nbytes: int
    image_column: str | None = None
    key_column: str | None = None
    key_prefix: str = ""
    stamp: str = ""

    def path_of(self, member: str) -> str:
        """Return the path of a folder's member, which is that path as valid text."""
        return self._paths_by_text.get(member, member)

    @cached_property
    def _paths_by_text(self) -> dict[str, str]:
        by_text = {shown(path): path for path in self.paths if shown(path) != path}
        as_they_are = by_text.keys() & set(self.paths)
        return {text: path for text, path in by_text.items() if text not in as_they_are}


def list_parts(
    name: str, settings: DatasetSettings, *, exclude: Sequence[str | Path] = ()
) -> list[Part]:
    """Return the parts of a dataset, sorted by name; `name` is for messages.

    Folders below the dataset's root that are in `exclude`, or hold results or work of lvd-curate,
    are left out, with a warning. Of a root that is itself a result, the shards are the dataset, or
    what its list names.
    Raises LvdError where nothing is there, or where a folder holds images of two kinds.
    """
    paths = [settings.path] if isinstance(settings.path, str) else settings.path
    places = [(path, _expand(name, path)) for path in dict.fromkeys(paths)]
    parts: list[Part] = []
    seen: set[tuple[str, str]] = set()
    left_out: dict[str, None] = {}
    for path, everything in places:
        place, outputs = without_outputs(everything, exclude)
        left_out.update(dict.fromkeys(locate(place.root, output) for output in outputs))
        if not place.files:
            only = f"only what lvd-curate wrote is there ({shown(outputs[0])})" if outputs else ""
            raise _nothing(name, path, only or "nothing is there")
        fresh = [f for f in place.files if (place.root, f.path) not in seen]
        seen.update((place.root, f.path) for f in fresh)
        with failures.reword(f"{_subject(name)}: {path}"):
            kind = _format(name, path, place, settings)
        if kind == "folder":
            parts += _folder_parts(place, fresh, settings)
        else:
            parts += _shards(place, fresh, kind, settings)
    if not parts:
        raise _nothing(name, ", ".join(paths), "no files of that format are there")
    with failures.reword(_subject(name)):
        _check_columns(name, parts)
    if left_out:
        examples = ", ".join(map(shown, itertools.islice(left_out, 3)))
        warn(
            f"{_subject(name)}: left out {len(left_out)} folders that lvd-curate wrote: {examples}"
            + (" and more" if len(left_out) > 3 else "")
        )
    return sorted(map(_sealed, _distinct(name, parts)), key=lambda part: part.name)


def _expand(name: str, path: str) -> Place:
    try:
        with failures.reword(f"{_subject(name)}: {path}"):
            return expand(path, (RESULT_MARKER, WORK_MARKER))
    except ListingError as error:
        raise _nothing(name, path, str(error)) from error


def _subject(name: str) -> str:
    return name if name.startswith("--") else f"dataset {name!r}"


def _nothing(name: str, path: str, why: str) -> LvdError:
    typed = name.startswith("--") or name == path  # and so stands in no file
    remedy = "name another place" if typed else "correct the dataset's `path` in pipelines.yaml"
    return LvdError(
        f"{_subject(name)}: no images at {path!r}: {why}; put a folder of images, tars or Parquet files "
        f"there, or {remedy}"
    )


def _format(name: str, path: str, place: Place, settings: DatasetSettings) -> Format:
    if settings.format != "auto":
        return settings.format
    if all(is_listed(file.path) for file in place.files):
        return "list"
    tables = _tables(place)
    kinds: dict[str, str] = {}
    for file in place.files:
        kind = kind_of(file.path)
        if file.path not in tables:
            kinds.setdefault(kind, file.path)
    for shard in ("tar", "parquet"):
        if shard in kinds and "image" in kinds:
            raise LvdError(
                f"dataset {name!r}: {path!r} holds both {shard} files ({shown(kinds[shard])}) and "
                f"loose images ({shown(kinds['image'])}): say which with a glob such as "
                f"'*.{shard}', or with `format: {shard}` or `format: folder` in pipelines.yaml"
            )
    if "tar" in kinds:
        return "tar"
    if "image" in kinds:
        return "folder"
    if "parquet" in kinds:
        return "parquet"
    if "unknown" in kinds and _some_are_images(place):
        return "folder"
    raise _nothing(
        name, path, f"it holds no image, tar or Parquet file but {len(place.files)} others"
    )


def _some_are_images(place: Place) -> bool:
    """Tell whether images are among the first files whose names do not say what they are."""
    from shared.pictures.images import SIGNATURE, is_image

    unknown = (f for f in place.files if kind_of(f.path) == "unknown" and f.stamp != BROKEN)
    return any(
        is_image(read_head(locate(place.root, file.path), file.size, SIGNATURE))
        for file in itertools.islice(unknown, 100)
    )


def _tables(place: Place) -> set[str]:
    """Return the Parquet files that describe other files instead of holding images themselves.

    They stand beside a tar or a folder of the same name, or are called metadata.parquet.
    """
    described = {without_extension(path) for path in place.around if kind_of(path) == "tar"}
    described |= {path.rpartition("/")[0] for path in place.around}
    return {
        path
        for path in place.around
        if kind_of(path) == "parquet"
        and (without_extension(path) in described or path.rpartition("/")[2] == "metadata.parquet")
    }


def _shards(
    place: Place, files: list[File], kind: Format, settings: DatasetSettings
) -> Iterator[Part]:
    """Yield a part for each tar, Parquet file or file of a list; a single one may have any extension."""
    tables = _tables(place)
    alone = len(place.files) == 1
    for file in files:
        odd_name = alone and kind_of(file.path) == "unknown"
        if kind_of(file.path) != ("parquet" if kind == "list" else kind) and not odd_name:
            continue
        if kind == "parquet" and file.path in tables and not alone:
            continue
        table = place.around.get(without_extension(file.path) + ".parquet")
        if kind != "tar":
            table = None
        yield Part(
            name=shown(without_extension(file.path)),
            format=kind,
            root=place.root,
            paths=(file.path,),
            sizes=(file.size,),
            table=table.path if table else None,
            fingerprint=_digest([file, table] if table else [file]),
            stamp=_stamp(place.root, [file, table] if table else [file]),
            nbytes=_listed_bytes(place, file) if kind == "list" else file.size or 0,
            image_column=settings.image_column if kind == "parquet" else None,
            key_column=settings.key_column if kind == "parquet" else None,
        )


def _listed_bytes(place: Place, file: File) -> int:
    from shared.datasets.selection_lists import sum_sizes

    return sum_sizes(locate(place.root, file.path))


def _folder_parts(place: Place, files: list[File], settings: DatasetSettings) -> Iterator[Part]:
    """Yield the buckets of a folder of images that hold any."""
    notes: dict[str, list[File]] = defaultdict(list)
    for path, file in sorted(place.around.items()):
        if kind_of(path) == "note":
            notes[stem(path)].append(file)
    buckets: dict[int, list[File]] = defaultdict(list)
    for file in files:
        if kind_of(file.path) in ("image", "unknown"):
            buckets[bucket(file.path, settings.folder_parts)].append(file)
    for number, images in buckets.items():
        stems = dict.fromkeys(stem(image.path) for image in images)
        every = images + [note for s in stems for note in notes.get(s, [])]
        yield Part(
            name=f"folder-{number:05d}",
            format="folder",
            root=place.root,
            paths=tuple(file.path for file in every),
            sizes=tuple(-1 if file.stamp == BROKEN else file.size for file in every),
            table=None,
            fingerprint=_digest(every),
            stamp=_stamp(place.root, every),
            nbytes=sum(image.size or 0 for image in images),
        )


def _check_columns(name: str, parts: list[Part]) -> None:
    """Fail early where the first Parquet file has no image column, or not the one asked for."""
    part = next((part for part in parts if part.format == "parquet"), None)
    if part is None:
        return
    from pyarrow import ArrowException
    from pyarrow.parquet import read_schema

    from shared.datasets.parquet_images import image_column

    with open_binary(locate(part.root, part.paths[0])) as source:
        try:
            schema = read_schema(source)
        except (ArrowException, ValueError, OSError) as error:
            failures.raise_if_storage(error)
            return  # damaged: a problem of this part when it is read
    try:
        image_column(schema, part.image_column)
    except ValueError as error:
        raise LvdError(
            f"{_subject(name)}: {shown(locate(part.root, part.paths[0]))}: {error}"
        ) from error


def _digest(files: list[File]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{shown(file.path)}\0{file.size}\0{file.stamp}\0\0".encode())
    return digest.hexdigest()


def _stamp(root: str, files: list[File]) -> str:
    if not all(file.version for file in files):
        return ""
    versions = [[shown(file.path), file.size, file.version] for file in files]
    return fingerprint([root, versions])


def _sealed(part: Part) -> Part:
    """Return the part with a fingerprint of its content and of all that decides its keys."""
    about = (part.name, part.format, part.key_prefix, part.image_column, part.key_column)
    seal = f"{part.fingerprint}\0{about!r}".encode()
    return replace(part, fingerprint=hashlib.blake2b(seal, digest_size=16).hexdigest())


def _distinct(name: str, parts: list[Part]) -> list[Part]:
    """Return the parts under names, and so with keys, that no two of them share.

    Of parts with one name under several roots each takes the last folders of its root in front;
    `00000.tar` beside `00000.tar.gz`, and `a.tar` beside `a/b.tar` (whose keys could meet), keep
    their extensions.
    """
    labels = _root_labels(sorted({part.root for part in parts}))
    folders = {part.root for part in parts if part.format == "folder"}
    by_name: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        by_name[part.name].append(part)
    named: list[Part] = []
    for part in parts:
        label = ""
        if part.format == "folder":
            label = labels[part.root] if len(folders) > 1 else ""
        elif any(other.root != part.root for other in by_name[part.name]):
            label = labels[part.root]
        prefix = f"{label}/" if label else ""
        key_prefix = prefix if part.format == "folder" else ""
        named.append(replace(part, name=prefix + part.name, key_prefix=key_prefix))
    uses: dict[str, int] = defaultdict(int)
    above: set[str] = set()
    for part in named:
        uses[part.name] += 1
        steps = part.name.split("/")
        above.update("/".join(steps[:depth]) for depth in range(1, len(steps)))
    for index, part in enumerate(named):
        if part.format != "folder" and (uses[part.name] > 1 or part.name in above):
            ending = shown(part.paths[0])[len(shown(without_extension(part.paths[0]))) :]
            named[index] = replace(part, name=part.name + ending)
    names: dict[str, Part] = {}
    for part in named:
        other = names.setdefault(part.name, part)
        if other is not part:
            raise LvdError(
                f"dataset {name!r}: {part.root}/{part.paths[0]} and {other.root}/{other.paths[0]} "
                f"would both be the part {part.name!r}: rename one, or make it a dataset of its own"
            )
    return named


def _root_labels(roots: list[str]) -> dict[str, str]:
    """Return for each root the fewest last folders that tell it from the others."""
    steps = {root: shown(root).rstrip("/").split("/") for root in roots}
    for depth in range(1, max((len(s) for s in steps.values()), default=1) + 1):
        labels = {root: "/".join(s[-depth:]).strip("/") for root, s in steps.items()}
        if len(set(labels.values())) == len(roots):
            return labels
    return {root: shown(root).strip("/") for root in roots}
