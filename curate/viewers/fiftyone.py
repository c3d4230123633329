"""The images of a finished run as a dataset that FiftyOne imports, in its format FiftyOneDataset.

That is `metadata.json`, which says what fields there are, and `samples.json`. FiftyOne brings a dataset
of an older version up to its own, so that `VERSION` is the oldest whose format this is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from curate.viewers.images import FIELDS, Row

VERSION = "1.0.0"
DIGITS = 6
"""Decimals of a vector's coordinates."""
_CORE = "fiftyone.core.fields."
_TYPES = {
    pa.string(): "StringField",
    pa.float32(): "FloatField",
    pa.int32(): "IntField",
    pa.int64(): "IntField",
}
_CLASSIFICATION = "fiftyone.core.labels.Classification"
_METADATA = "fiftyone.core.metadata.ImageMetadata"
INSTEAD = ("decision", "width", "height")
"""Fields that FiftyOne has in a form of its own: a classification, and an image's metadata."""


def write_fiftyone(
    folder: Path,
    blocks: Iterable[list[Row]],
    vectors: Callable[[list[Row]], Float32[np.ndarray, "n d"]] | None,
) -> None:
    """Write `metadata.json` and `samples.json`: a sample for each row, with its vector if asked for.

    The fields are those of the reports; `decision` is a classification and a tag, and `vector` a list
    of numbers of length 1 (None where the image has none).
    """
    (folder / "metadata.json").write_text(json.dumps(_dataset(vectors is not None)) + "\n")
    separator = ""
    with (folder / "samples.json").open("w", encoding="utf-8") as file:
        file.write('{"samples": [')
        for rows in blocks:
            known = vectors(rows) if vectors is not None and rows else [None] * len(rows)
            for row, vector in zip(rows, known, strict=True):
                file.write(f"{separator}\n{json.dumps(_sample(row, vector))}")
                separator = ","
        file.write("\n]}\n")


def _sample(row: Row, vector: Float32[np.ndarray, " d"] | None) -> dict[str, Any]:
    told = {name: row[name] for name in FIELDS if name not in INSTEAD}
    if vector is not None:
        told["vector"] = np.round(vector.astype(float), DIGITS).tolist() if vector.any() else None
    digest = hashlib.sha256(row["key"].encode()).digest()
    return {
        "filepath": row["path"],
        "tags": [row["decision"]],
        "metadata": {"_cls": "ImageMetadata", "width": row["width"], "height": row["height"]},
        "_media_type": "image",
        "_rand": int.from_bytes(digest[:6]) / 2**48,  # by which FiftyOne draws samples
        "decision": {"_cls": "Classification", "tags": [], "label": row["decision"]},
        **told,
    }


def _dataset(with_vectors: bool) -> dict[str, Any]:
    own = [_field(name, _TYPES[kind]) for name, kind in FIELDS.items() if name not in INSTEAD]
    if with_vectors:
        own.append(_field("vector", "ListField", subfield="FloatField"))
    label = [
        _field("id", "ObjectIdField", "_id"),
        _field("tags", "ListField", subfield="StringField"),
        _field("label", "StringField"),
        _field("confidence", "FloatField"),
        _field("logits", "VectorField"),
    ]
    size = [_field(name, "IntField") for name in ("size_bytes", "width", "height", "num_channels")]
    metadata = [*size, _field("mime_type", "StringField")]
    return {
        "version": VERSION,
        "media_type": "image",
        "sample_fields": [
            _field("id", "ObjectIdField", "_id"),
            _field("filepath", "StringField"),
            _field("tags", "ListField", subfield="StringField"),
            _field("metadata", "EmbeddedDocumentField", document=_METADATA, fields=metadata),
            _field("decision", "EmbeddedDocumentField", document=_CLASSIFICATION, fields=label),
            *own,
        ],
    }


def _field(
    name: str,
    kind: str,
    stored_as: str | None = None,
    *,
    subfield: str | None = None,
    document: str | None = None,
    fields: Iterable[dict[str, Any]] = (),
) -> dict[str, Any]:
    return {
        "name": name,
        "ftype": _CORE + kind,
        "embedded_doc_type": document,
        "subfield": subfield and _CORE + subfield,
        "fields": list(fields),
        "db_field": stored_as or name,
        "description": None,
        "info": None,
        "read_only": False,
    }
