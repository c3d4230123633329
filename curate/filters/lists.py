"""Lists of images that must not be kept: known-bad ones by hash, and opt-outs by URL, domain or key.

A list is compiled once into the sorted 32-byte digests of its entries, two files that every task
maps into its memory: a task's own memory grows with the images that it asks about, not with the
list. A lookup is a binary search for the first 8 bytes and a comparison of the other 24; PDQ hashes,
of which near ones count, are compared with all that are listed.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, UInt8, UInt64
from pydantic import BaseModel, ConfigDict, Field, model_validator

from curate.filters import pdq
from curate.filters.addresses import domains_of, host_of, normalise_domain, normalise_url
from curate.filters.decisions import Check
from shared.errors import LvdError, nearest
from shared.storage.commits import building, commit, committed
from shared.storage.failures import reword
from shared.storage.files import fingerprint
from shared.storage.remote import open_binary

VERSION = 1
LISTS = "lists"
"""The folder of WORK that holds compiled lists."""
HEADS, TAILS = "heads.npy", "tails.npy"
"""uint64 [n], sorted, and uint64 [n, 3]: the four big-endian words of each digest."""
ROWS = 65_536
"""Rows of a Parquet list that are read at a time."""
_CHUNK = 1 << 20

KindName = Literal["sha256", "pdq", "url", "domain", "key"]


class ListSettings(BaseModel):
    """A list of images that are `unsafe`: where it is, and what its entries are."""

    model_config = ConfigDict(extra="forbid")

    kind: KindName
    """`sha256` of the file's bytes, or `pdq` of the picture (extra `pdq`), in hex; `url`; `domain`,
    with those below it; `key`."""
    path: str
    """A local path or an fsspec URL: `.csv` and `.parquet` are tables, all else is plain text with
    an entry on each line, where empty lines and those that begin with # do not count."""
    column: str | None = None
    """Of a table, the column of the entries; by default the one called as the kind, or the only one."""

    distance: int | None = Field(None, ge=0, le=255)
    """Of `pdq`: bits of 256 that may differ, 31 by default, as its authors advise."""

    @model_validator(mode="after")
    def _fits(self) -> ListSettings:
        if self.distance is not None and self.kind != "pdq":
            raise ValueError(f"distance is for the kind pdq, not for {self.kind}")
        if self.column is not None and not _is_table(self.path):
            raise ValueError("column is for a .csv or .parquet, and path names neither")
        return self


@dataclass(frozen=True)
class Kind:
    """What entries of a kind are, and what of an image is looked up among them."""

    column: str
    """Of the facts."""
    normalise: Callable[[str], str]
    """Returns an entry as it is compared; ValueError says what one should be."""
    asked: Callable[[str], Iterable[str]]
    """Returns what a value of the column may be listed as."""


def _hash(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise ValueError("a hash (sha256 or pdq) is 64 hexadecimal digits")
    return text.lower()


def _url(text: str) -> list[str]:
    try:
        return [normalise_url(text)]
    except ValueError:  # the crawl holds what is none
        return []


KINDS: dict[KindName, Kind] = {
    "sha256": Kind("sha256", _hash, lambda sha256: [sha256]),
    "pdq": Kind("pdq", _hash, lambda pdq: [pdq]),
    "url": Kind("url", normalise_url, _url),
    "domain": Kind("url", normalise_domain, lambda url: domains_of(host_of(url))),
    "key": Kind("key", lambda key: key, lambda key: [key]),
}


@dataclass(frozen=True)
class CompiledList:
    """A list in the form in which it is searched; travels to the workers as a path."""

    name: str
    kind: KindName
    folder: Path
    content: str
    """Stands for its entries."""
    entries: int
    """How many different ones it has."""
    distance: int = 0
    """Bits that may differ."""

    @property
    def column(self) -> str:
        """The column of the facts that is looked up."""
        return KINDS[self.kind].column

    def find(self, facts: pa.Table) -> list[str | None]:
        """Return for each image by what the list names it, or None."""
        asked: list[str] = []
        rows: list[int] = []
        for row, value in enumerate(facts[self.column].to_pylist()):
            if value is not None:
                texts = list(KINDS[self.kind].asked(value))
                asked += texts
                rows += [row] * len(texts)
        found: list[str | None] = [None] * len(facts)
        words = _words(_digests(self.kind, asked))
        if not self.entries:  # an empty file cannot be mapped
            return found
        hits = self._is_near(words) if self.kind == "pdq" else self._holds(words)
        for place in np.flatnonzero(hits).tolist():
            found[rows[place]] = found[rows[place]] or asked[place]
        return found

    def _is_near(self, words: UInt64[np.ndarray, "m 4"]) -> Bool[np.ndarray, " m"]:
        heads = np.load(self.folder / HEADS, mmap_mode="r")
        tails = np.load(self.folder / TAILS, mmap_mode="r")
        near = np.zeros(len(words), bool)
        for at in range(0, self.entries, ROWS):
            some = slice(at, at + ROWS)
            block = np.column_stack([heads[some], tails[some]])
            near |= pdq.fewest_bits(words, block) <= self.distance
        return near

    def _holds(self, words: UInt64[np.ndarray, "m 4"]) -> Bool[np.ndarray, " m"]:
        heads = np.load(self.folder / HEADS, mmap_mode="r")
        tails = np.load(self.folder / TAILS, mmap_mode="r")
        at = np.searchsorted(heads, words[:, 0], "left")
        stop = np.searchsorted(heads, words[:, 0], "right")
        holds = np.zeros(len(words), bool)
        while len(open_ := np.flatnonzero(~holds & (at < stop))):
            holds[open_] = (tails[at[open_]] == words[open_, 1:]).all(1)
            at[open_] += 1
        return holds


def listed(facts: pa.Table, lists: Iterable[CompiledList]) -> Iterator[Check]:
    """Yield a check for each list: the images that it names are `unsafe`."""
    for each in lists:
        found = each.find(facts)
        failing = np.array([entry is not None for entry in found], bool)

        def reason(row: int, each: CompiledList = each, found: list[str | None] = found) -> str:
            entry = f" {found[row]}" if each.kind == "domain" else ""
            if each.kind == "pdq":
                return f"pdq is within {each.distance} bits of one on the list {each.name}"
            return f"{each.kind}{entry} is on the list {each.name}"

        yield Check("unsafe", failing, reason)


def compile_lists(
    lists: Mapping[str, ListSettings], work: Path, scratch: Path
) -> tuple[CompiledList, ...]:
    """Return lists by their names, compiled below `work` where they are not there already.

    Raises LvdError, in one line with the list, its path and the line or row, for a list that cannot
    be read or has an entry that is none of its kind.
    """
    return tuple(_compile(name, each, work, scratch) for name, each in lists.items())


def _compile(name: str, settings: ListSettings, work: Path, scratch: Path) -> CompiledList:
    place = f"lists.{name}: {settings.path}"
    with reword(place, "correct its path"), open_binary(settings.path) as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    content = digest.hexdigest()
    about = fingerprint([VERSION, settings.kind, settings.column, _format(settings.path)])
    unit = work / LISTS / about / content[:32]
    result = committed(unit)
    if result is None:
        with reword(place):
            entries = _sorted_words(_entries(place, settings))
        with building(unit, scratch) as beside:
            np.save(beside / HEADS, entries[:, 0])
            np.save(beside / TAILS, entries[:, 1:])
            result = commit(beside, unit, {"entries": len(entries)})
    distance = 0
    if settings.kind == "pdq":
        distance = pdq.DISTANCE if settings.distance is None else settings.distance
    stands_for = fingerprint([about, content, distance])
    return CompiledList(name, settings.kind, unit, stands_for, result["entries"], distance)


def _entries(place: str, settings: ListSettings) -> bytearray:
    """Return the digests of all entries, one behind the other."""
    digests = bytearray()
    normalise = KINDS[settings.kind].normalise
    read = {".csv": _from_csv, ".parquet": _from_parquet}.get(_format(settings.path), _from_text)
    with open_binary(settings.path) as stream:
        for where, text in read(stream, settings, place):
            try:
                digests += _digest(settings.kind, normalise(text))
            except ValueError as error:
                shown = text if len(text) <= 80 else f"{text[:77]}..."
                raise LvdError(f"{place}, {where}: {shown!r}: {error}") from None
    return digests


def _from_text(stream: IO[bytes], settings: ListSettings, place: str) -> Iterator[tuple[str, str]]:
    for number, line in _lines(stream, place):
        text = line.strip()
        if text and not text.startswith("#"):
            yield f"line {number}", text


def _from_csv(stream: IO[bytes], settings: ListSettings, place: str) -> Iterator[tuple[str, str]]:
    reader = csv.reader(line for _, line in _lines(stream, place))
    try:
        names = next(reader, [])
        column = names.index(_column(names, settings, place))
        for cells in reader:
            if column < len(cells) and (text := cells[column].strip()):
                yield f"line {reader.line_num}", text
    except csv.Error as error:
        raise LvdError(f"{place}, line {reader.line_num}: no CSV: {error}") from None


def _from_parquet(
    stream: IO[bytes], settings: ListSettings, place: str
) -> Iterator[tuple[str, str]]:
    try:
        file = pq.ParquetFile(stream)
        column = _column(file.schema_arrow.names, settings, place)
        kind = file.schema_arrow.field(column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise LvdError(f"{place}: its column {column!r} holds {kind}, not text")
        number = 0
        for batch in file.iter_batches(ROWS, columns=[column]):
            for value in batch.column(0).to_pylist():
                number += 1
                if value is not None and (text := value.strip()):
                    yield f"row {number}", text
    except pa.ArrowInvalid as error:
        raise LvdError(f"{place}: no Parquet: {error}") from None


def _lines(stream: IO[bytes], place: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(stream, start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise LvdError(f"{place}, line {number}: it is no UTF-8 text") from None


def _column(names: list[str], settings: ListSettings, place: str) -> str:
    if settings.column is None and len(names) == 1:
        return names[0]
    wanted = settings.column or settings.kind
    if wanted not in names:
        raise LvdError(
            f"{place}: it has no column {wanted!r}{nearest(wanted, names)}: it has "
            f"{', '.join(names) or 'none'}; name one with `column`"
        )
    return wanted


def _format(path: str) -> str:
    return Path(path.partition("?")[0]).suffix.lower() if _is_table(path) else ""


def _is_table(path: str) -> bool:
    return Path(path.partition("?")[0]).suffix.lower() in (".csv", ".parquet")


def _digest(kind: KindName, text: str) -> bytes:
    if kind in ("sha256", "pdq"):
        return bytes.fromhex(text)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _digests(kind: KindName, texts: list[str]) -> UInt8[np.ndarray, "m 32"]:
    joined = b"".join(_digest(kind, text) for text in texts)
    return np.frombuffer(joined, np.uint8).reshape(len(texts), 32)


def _words(digests: UInt8[np.ndarray, "m 32"]) -> UInt64[np.ndarray, "m 4"]:
    return digests.view(">u8").astype(np.uint64)


def _sorted_words(digests: bytearray) -> UInt64[np.ndarray, "n 4"]:
    """Return the distinct digests in their order; with them, a list takes 120 bytes an entry."""
    words = _words(np.frombuffer(digests, np.uint8).reshape(-1, 32))
    words = words[np.lexsort(words.T[::-1])]
    new = np.ones(len(words), bool)
    new[1:] = (words[1:] != words[:-1]).any(1)
    return words if new.all() else words[new]
