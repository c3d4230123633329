"""The content of a part: a hash of its bytes, which addresses all that is computed of it.

A stamp (places, sizes, times) says quickly that a part is what it was; else its bytes are hashed.
So a part that was touched, copied, renamed or moved costs a read, and changed bytes are noticed.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from shared.datasets.dataset import Part
from shared.datasets.filetypes import kind_of
from shared.datasets.parts import Member
from shared.errors import LvdError
from shared.keys import shown
from shared.pictures.images import SIGNATURE, is_image
from shared.storage.files import fingerprint, read_json, write_json
from shared.storage.remote import is_remote, locate, open_binary
from shared.storage.stores import is_there, publish, remove

STAMPS, PLACES = "stamps", "places"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Copy:
    """A part whose files are local, with its content; what it yields knows nothing of its name."""

    part: Part
    content: str
    place: str
    """What the part is found by when its content has changed."""
    versions: dict[Path, tuple[int, ...]] = field(default_factory=dict)
    """What the file system said of the files that are read where they are, before they were."""

    def require_unchanged(self) -> None:
        """Raise LvdError unless what is read is what was hashed."""
        for path, version in self.versions.items():
            if _version(path) != version:
                raise LvdError(
                    f"{shown(str(path))} changed while it was read: run the same command again"
                )


def key_prefix(part: Part) -> str:
    """Return what stands before the name of each image of a part in its key."""
    return part.key_prefix if part.format == "folder" else f"{part.name}/"


def name_of(member: Member, part: Part) -> str:
    """Return the name of an image of a nameless part: its key without the prefix."""
    return member.key if part.format == "folder" else member.key.removeprefix("/")


def recall(work: Path, part: Part) -> str | None:
    """Return the content of a part as its stamp tells it; None where it has to be read."""
    return _kept_content(_stamp_file(work, part)) if part.stamp else None


def remember(work: Path, part: Part, content: str, scratch: Path, is_newest: bool = True) -> None:
    """Keep the content of a part under its stamp, and, where it is, as the newest of its place."""
    stamps = [_stamp_file(work, part)] if part.stamp else []
    for path in [*([work / PLACES / place_of(part)] if is_newest else []), *stamps]:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"content": content}, scratch)
        publish(path)


def forget(work: Path, part: Part) -> None:
    """Let a part's bytes be read again, whatever its stamp says."""
    if part.stamp:
        remove(_stamp_file(work, part))


def earlier_content(work: Path, place: str) -> str | None:
    """Return the newest content that was kept of a place."""
    return _kept_content(work / PLACES / place)


def stale_notes(work: Path, contents: Container[str]) -> Iterator[Path]:
    """Yield what is remembered of parts whose content is none of `contents`."""
    for path in [*(work / STAMPS).glob("*/*"), *(work / PLACES).glob("*")]:
        if _kept_content(path) not in contents:
            yield path


@contextmanager
def local_copy(part: Part, scratch: Path) -> Iterator[Copy]:
    """Yield the part with its files on a local disk, and its content; reads each file once.

    Files of a local part stay where they are; those of a remote one are copied below `scratch`. Of
    a folder's files that are no images by name or content, only the first bytes count.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        root = folder if is_remote(part.root) else part.root
        digests, versions = [], {}
        sizes: list[int | None] = []
        files = [
            *zip(part.paths, part.sizes, strict=True),
            *([(part.table, 0)] if part.table else []),
        ]
        for number, (path, size) in enumerate(files):
            digest = "broken"
            if size != -1:  # else a link that led nowhere when it was listed
                copy = _inside(Path(folder), path) if is_remote(part.root) else None
                if copy is None:
                    local = Path(locate(part.root, path))
                    versions[local] = _version(local)
                maybe_junk = part.format == "folder" and kind_of(path) == "unknown"
                digest = _read(locate(part.root, path), copy, maybe_junk)
                if size is None and copy is not None:
                    size = copy.stat().st_size
            sizes.append(size)
            name = path if part.format == "folder" else str(number)
            digests.append([name.encode("utf-8", "surrogateescape").hex(), digest])
        about = [part.format, part.image_column, part.key_column, digests]
        learned = tuple(sizes[: len(part.paths)])
        nbytes = part.nbytes or sum(size or 0 for size in learned)
        nameless = replace(part, root=root, name="", key_prefix="", sizes=learned, nbytes=nbytes)
        yield Copy(nameless, fingerprint(about, 16), place_of(part), versions)


def place_of(part: Part) -> str:
    """Return what names the place of a part: its root, and its file or its share of a folder."""
    inside = part.name if part.format == "folder" else part.paths[0]
    return fingerprint([part.format, part.root, inside])


def _stamp_file(work: Path, part: Part) -> Path:
    name = fingerprint([part.stamp, part.format, part.image_column, part.key_column])
    return work / STAMPS / name[:2] / name


def _kept_content(note: Path) -> str | None:
    try:
        content: str | None = read_json(note)["content"] if is_there(note) else None
        return content
    except (FileNotFoundError, ValueError):
        return None


def _version(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _inside(folder: Path, path: str) -> Path:
    """Return where a remote file is copied to: nowhere but below `folder`."""
    target = (folder / path).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise LvdError(f"{shown(path)} leads out of its dataset: rename or leave out that file")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _read(location: str, copy: Path | None, maybe_junk: bool) -> str:
    """Return the sha256 of a file, and write what was read to `copy`."""
    digest = hashlib.sha256()
    with ExitStack() as stack:
        source = stack.enter_context(open_binary(location))
        target = stack.enter_context(copy.open("wb")) if copy else None
        chunk = source.read(SIGNATURE if maybe_junk else _CHUNK)
        junk = maybe_junk and not is_image(chunk)
        while chunk:
            digest.update(chunk)
            if target is not None:
                target.write(chunk)
            chunk = b"" if junk else source.read(_CHUNK)
    return digest.hexdigest()
