"""Makes a small finished run, pictures and all, for the tests of what reads one."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from curate.filters.decisions import DECISIONS

HOSTILE = "00001/<script>alert('x')</script>\x1b[2J\u202e&amp"
RETRIEVE, DEDUP = 0.5, 0.8

IMAGES = pa.schema(
    [
        ("key", "string"),
        ("part", "string"),
        ("member", "string"),
        ("url", "string"),
        ("caption", "string"),
        ("sha256", "string"),
        ("width", "int32"),
        ("height", "int32"),
        ("format", "string"),
        ("bytes", "int64"),
        ("decision", "string"),
        ("reason", "string"),
        ("cluster", "int32"),
        ("group", "int64"),
        ("duplicate_of", "string"),
        ("duplicate_similarity", "float32"),
        ("nearest_seed", "string"),
        ("seed_similarity", "float32"),
        ("seeds", pa.list_(pa.string())),
        ("weight", "int32"),
        ("balance_cluster", "int32"),
        ("output_shard", "string"),
        ("output_key", "string"),
    ]
)
RETRIEVAL = pa.schema(
    [
        ("key", "string"),
        ("rank", "int16"),
        ("seed_key", "string"),
        ("similarity", "float32"),
        ("strategy", "string"),
        ("seed", "string"),
    ]
)
BALANCE = pa.schema(
    [("path", pa.list_(pa.int32())), ("images", "int64"), ("kept", "int64"), ("weight", "int64")]
)
PAIRS = pa.schema([("key", "string"), ("better", "string"), ("similarity", "float32")])
COUNTS = ("copies", "groups", "members", "standing", "undecided", "kept", "released", "of_kept")
REGROUPED = pa.schema([("threshold", "float64"), *((name, "int64") for name in COUNTS)])
DUPLICATES = pa.schema(
    [
        ("group", "int64"),
        ("key", "string"),
        ("representative", "bool"),
        ("similarity", "float32"),
        ("method", "string"),
    ]
)


def picture(key: str) -> bytes:
    """Return a small JPEG that is the key's own."""
    colours = np.frombuffer(hashlib.sha256(key.encode()).digest()[:27], np.uint8).reshape(3, 3, 3)
    stream = io.BytesIO()
    Image.fromarray(colours).resize((96, 64), Image.Resampling.BILINEAR).save(stream, "JPEG")
    return stream.getvalue()


def finished_run(out: Path, *, images: int = 60, folder: bool = False) -> Path:
    """Write a run of `images` images with every decision in it; `folder`: tables in two files."""
    rows = _rows(images)
    duplicates = _duplicates(rows)
    retrieval = [
        {
            "key": row["key"],
            "rank": rank,
            "seed_key": f"seed{(index + rank) % 3}.jpg",
            "similarity": row["seed_similarity"] - rank / 100,
            "strategy": "threshold",
            "seed": "animals",
        }
        for index, row in enumerate(rows)
        if row["seed_similarity"] is not None
        for rank in range(2)
    ]
    (out / "reports").mkdir(parents=True)
    for name, schema, table in (
        ("images", IMAGES, rows),
        ("retrieval", RETRIEVAL, retrieval),
        ("duplicates", DUPLICATES, duplicates),
    ):
        _write(out / "reports" / f"{name}.parquet", pa.Table.from_pylist(table, schema), folder)
    pairs = _pairs(rows)
    for name, schema, table in (
        ("pairs", PAIRS, pairs),
        ("regrouped", REGROUPED, _regrouped(rows, pairs)),
    ):
        _write(out / "reports" / f"{name}.parquet", pa.Table.from_pylist(table, schema), False)
    clusters = pa.Table.from_pylist(_balance(rows), BALANCE)
    _write(out / "reports" / "balance.parquet", clusters, False)
    _write_shards(out / "shards", [row for row in rows if row["decision"] == "kept"])
    _write_json(out, rows, duplicates)
    return out


def _rows(images: int) -> list[dict]:
    rows = []
    for index in range(images):
        decision = DECISIONS[index % 11] if index % 11 < 8 else ("kept", "duplicate")[index % 2]
        key = HOSTILE if index == 2 else f"{index // 30:05d}/i{index:04d}"
        row = dict.fromkeys(IMAGES.names) | {
            "key": key,
            "part": key[:5],
            "member": f"i{index:04d}.jpg",
            "url": f"https://example.org/{index}?a=<b>",
            "sha256": f"{index:064x}",
            "bytes": 1000 + index,
            "decision": decision,
            "reason": "" if decision == "kept" else f"<b>{decision}</b> for reason {index}",
        }
        if decision != "corrupt":
            row |= {"width": 96, "height": 64, "format": "jpeg"}
        if decision not in ("corrupt", "unsafe", "low_quality"):
            row["cluster"] = index % 4
        if decision in ("kept", "over_budget", "irrelevant"):
            low = 0.0 if decision == "irrelevant" else RETRIEVE
            row["seed_similarity"] = low + 0.4 * index / images
            row["nearest_seed"] = f"seed{index % 3}.jpg"
            row["seeds"] = [] if decision == "irrelevant" else ["animals"]
            if decision != "irrelevant":
                row["balance_cluster"] = index % 3
            if decision == "kept":
                row["weight"] = 1 + index % 2
        rows.append(row)
    rows.sort(key=lambda row: row["key"])
    kept = [row for row in rows if row["decision"] == "kept"]
    for index, row in enumerate(kept):
        shard, place = divmod(index, 8)
        row |= {"output_shard": f"{shard:05d}", "output_key": f"{shard:05d}{place:04d}"}
    copies = [row for row in rows if row["decision"] == "duplicate"]
    for index, row in enumerate(copies):
        best = kept[index % 2]
        best["group"] = row["group"] = rows.index(best)
        row["duplicate_of"] = best["key"]
        row["duplicate_similarity"] = 1.0 if index < 2 else DEDUP + 0.01 * index
    return rows


def _balance(rows: list[dict]) -> list[dict]:
    inside = {n: [row for row in rows if row["balance_cluster"] == n] for n in range(3)}
    return [
        {
            "path": [0, n],
            "images": len(inside[n]),
            "kept": sum(row["weight"] is not None for row in inside[n]),
            "weight": sum(row["weight"] or 0 for row in inside[n]),
        }
        for n in range(3)
    ]


def _duplicates(rows: list[dict]) -> list[dict]:
    return [
        {
            "group": row["group"],
            "key": row["key"],
            "representative": row["decision"] == "kept",
            "similarity": row["duplicate_similarity"] or 1.0,
            "method": "exact" if row["duplicate_similarity"] == 1.0 else "near",
        }
        for row in rows
        if row["group"] is not None
    ]


def _pairs(rows: list[dict]) -> list[dict]:
    """Return the near copies, and as many pairs below the threshold."""
    near = [row for row in rows if row["group"] is not None and row["decision"] == "duplicate"]
    others = [row for row in rows if row["decision"] == "kept"]
    pairs = [
        (row["key"], row["duplicate_of"], row["duplicate_similarity"])
        for row in near
        if row["duplicate_similarity"] < 1
    ]
    pairs += [
        (one["key"], other["key"], DEDUP - 0.01 * (index + 1))
        for index, (one, other) in enumerate(zip(others[1:], others, strict=False))
    ]
    return [dict(zip(PAIRS.names, pair, strict=True)) for pair in sorted(pairs)]


def _regrouped(rows: list[dict], pairs: list[dict]) -> list[dict]:
    """Return counts that differ from one threshold to the next; a run's own are tested with it."""
    if not rows:
        return []
    found = []
    for step in range(120, 201):
        copies = sum(np.float32(pair["similarity"]) >= np.float32(step / 200) for pair in pairs)
        counts = (copies, copies // 2, copies + 1, len(rows) - copies, 0, 5, step, step // 2)
        found.append({"threshold": step / 200} | dict(zip(COUNTS, counts, strict=True)))
    return found


def _write(path: Path, table: pa.Table, folder: bool) -> None:
    if not folder:
        pq.write_table(table, path)
        return
    path.mkdir()
    for name, start, stop in (("0", 0, len(table) // 2), ("1", len(table) // 2, len(table))):
        pq.write_table(table.slice(start, stop - start), path / f"{name}.parquet")


def _write_shards(shards: Path, kept: list[dict]) -> None:
    shards.mkdir()
    for name in sorted({row["output_shard"] for row in kept}):
        with tarfile.open(shards / f"{name}.tar", "w") as archive:
            for row in kept:
                if row["output_shard"] == name:
                    for extension, data in (("json", b"{}"), ("jpg", picture(row["key"]))):
                        member = tarfile.TarInfo(f"{row['output_key']}.{extension}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))


def _write_json(out: Path, rows: list[dict], duplicates: list[dict]) -> None:
    funnel = {
        "images": len(rows),
        "decisions": {name: sum(row["decision"] == name for row in rows) for name in DECISIONS},
        "groups": {"count": 2 if duplicates else 0, "members": len(duplicates)},
        "dedup_recall": {"recall": 1.0, "pairs": 12, "queries": 50},
        "dedup_pairs": {"floor": 0.6, "pairs": 20, "per_image": 8, "left_out": 0},
        "thresholds": {
            "dedup": {"value": DEDUP, "source": "calibrated"},
            "retrieve": {"value": RETRIEVE, "source": "pipeline"},
            "holdout": None,
        },
        "problems": ["00001: tar ends early at byte 123 \x1b[2J"],
        "settings": {"seed": 1, "dedup": {"precision": 0.99}, "path": "</pre><script>"},
        "versions": {"timm": "1.0"},
    }
    embed = {"name": "embed", "seconds": 12.3, "images": len(rows), "cached": False}
    timings = {
        "stages": [
            {**embed, "steps": {"resting": 1.0, "hashing": 4.0}},
            {"name": "cluster", "seconds": 0.0, "images": len(rows), "cached": True},
        ],
        "seconds": 12.4,
    }
    (out / "reports" / "funnel.json").write_text(json.dumps(funnel))
    (out / "run.json").write_text(json.dumps({"crawl": "web", "seed": "animals"}))
    (out / "timings.json").write_text(json.dumps(timings))
