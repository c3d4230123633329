"""Writes small parts and reads them whole, checking what holds of every part."""

import io
import tarfile

from PIL import Image

from shared.datasets.dataset import DatasetSettings, list_parts
from shared.datasets.parts import PartReader
from shared.datasets.single_images import direct, fetch
from shared.pictures.images import ImageError


def png(colour=0):
    stream = io.BytesIO()
    Image.new("L", (3, 2), colour).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, members, mode="w", **options):
    """Write (name or TarInfo, bytes) pairs as a tar."""
    with tarfile.open(path, mode, **options) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(path, scratch, columns=(), **options):
    """Return the members, the problems and the bytes (or reasons) by key of one-part datasets."""
    (part,) = list_parts("mine", DatasetSettings(path=str(path), **options))
    with PartReader(part, scratch, columns) as reader:
        content = {}
        for member in reader.members:
            try:
                content[member.key] = reader.read(member)
            except ImageError as error:
                content[member.key] = str(error)
        if direct(part):
            for member in reader.members:
                if not member.problem and isinstance(content[member.key], bytes):
                    data = fetch(part, member.member, member.offset, member.size)
                    assert data == content[member.key]
        assert [m.key for m in reader.members] == sorted(content)
    assert not any(scratch.iterdir())
    return reader.members, reader.problems, content
