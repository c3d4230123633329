"""Says by its name alone what a file or a tar member is to this system."""

from __future__ import annotations

from typing import Literal

Kind = Literal["image", "note", "tar", "parquet", "hidden", "unknown"]

IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff"}
)
"""Those of the formats that are read."""
# Formats that are not read. Such a name often lies: the content may be a JPEG.
_OTHER_IMAGE_EXTENSIONS = frozenset(
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

    An `image` is one by its name, whatever its content; `unknown` is what only the content can
    tell (`x.jpg?w=640`, `README.md`, no extension); a `note` is a sidecar (`.json`, `.txt`);
    `hidden` are the `._name` companions that macOS writes.
    """
    base = name.rpartition("/")[2].lower()
    end = extension(name)
    if base.startswith("._"):
        return "hidden"
    if end == "tar" or base.endswith((".tar.gz", ".tgz")):
        return "tar"
    if end in IMAGE_EXTENSIONS or end in _OTHER_IMAGE_EXTENSIONS:
        return "image"
    if end in NOTE_EXTENSIONS:
        return "note"
    return "parquet" if end == "parquet" else "unknown"


def without_extension(path: str) -> str:
    """Return the path of a shard without `.tar`, `.tar.gz`, `.tgz` or `.parquet`."""
    for end in (".tar.gz", ".tgz", ".tar", ".parquet"):
        if path.lower().endswith(end) and not path.lower().endswith("/" + end):
            return path[: -len(end)]
    return path
