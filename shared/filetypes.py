"""Says by its name alone what a file or a tar member is to this system."""

from __future__ import annotations

from typing import Literal

Kind = Literal["image", "unread", "bare", "note", "tar", "parquet", "other"]

IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff"}
)
# Pictures to their owner, but not to the decoder: they become rows with a reason.
UNREAD_EXTENSIONS = frozenset(
    {"avif", "heic", "heif", "svg", "eps", "ps", "ico", "jp2", "j2k", "jxl", "psd", "tga"}
    | {"ppm", "pgm", "pbm", "pnm"}
)
NOTE_EXTENSIONS = frozenset({"json", "txt"})


def extension(name: str) -> str:
    """Return the lower-case extension of a path without its dot; "" where it has none."""
    base = name.rpartition("/")[2]
    return base.rpartition(".")[2].lower() if "." in base else ""


def kind_of(name: str) -> Kind:
    """Return what a path names.

    `image` is readable, `unread` an image format that is not, `bare` has no extension and so may
    be anything, `note` is a sidecar (`.json`, `.txt`). The `._name` companions that macOS writes
    are `other`.
    """
    base = name.rpartition("/")[2].lower()
    end = extension(name)
    if base.startswith("._"):
        return "other"
    if end == "tar" or base.endswith((".tar.gz", ".tgz")):
        return "tar"
    if end in IMAGE_EXTENSIONS:
        return "image"
    if end in UNREAD_EXTENSIONS:
        return "unread"
    if end in NOTE_EXTENSIONS:
        return "note"
    if end == "parquet":
        return "parquet"
    return "other" if end else "bare"


def without_extension(path: str) -> str:
    """Return the path of a shard without `.tar`, `.tar.gz`, `.tgz` or `.parquet`."""
    for end in (".tar.gz", ".tgz", ".tar", ".parquet"):
        if path.lower().endswith(end) and not path.lower().endswith("/" + end):
            return path[: -len(end)]
    return path
