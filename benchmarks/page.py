"""The report's page of a made-up result: processor time, memory and bytes at growing numbers of images.

Tables are made by DuckDB, and every picture is noise, which JPEG makes no smaller. Memory is what the
process holds of its own (`RssAnon`) at most, above what it held before.

    export OMP_NUM_THREADS=1
    nice .venv/bin/python benchmarks/page.py --images 1000000
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import resource
import tempfile
import threading
from pathlib import Path

import click
import duckdb
import numpy as np
from PIL import Image

from curate.filters.decisions import DECISIONS
from curate.report.pictures import pictures

DEDUP, RETRIEVE, DIM = 0.8, 0.5, 64
CLUSTERS = 1_000
SECONDS = 0.02
"""Between two looks at the memory."""
TABLES = {
    "images": f"""
        WITH drawn AS (
            SELECT i, format('{{:06d}}/{{:09d}}', i // 10000, i) AS key, hash(i) % 1000 AS lot,
                (hash(i * 3) % 100000) / 100000 AS x
            FROM range(?) AS t(i)
        ), decided AS (
            SELECT *, CASE WHEN lot < 10 THEN 'corrupt' WHEN lot < 20 THEN 'unsafe'
                WHEN lot < 60 THEN 'low_quality' WHEN lot < 65 THEN 'holdout'
                WHEN lot < 365 THEN 'duplicate' WHEN x < {RETRIEVE} THEN 'irrelevant'
                WHEN lot < 400 THEN 'over_budget' ELSE 'kept' END AS decision
            FROM drawn
        )
        SELECT key, key[:6] AS part, key[8:] || '.jpg' AS member,
            format('https://site{{}}.example.org/{{}}.jpg', hash(i) % 5000, i) AS url,
            NULL::VARCHAR AS caption, md5(key) AS sha256, 640::INTEGER AS width,
            480::INTEGER AS height, 'jpeg' AS format, 60000 AS bytes, decision,
            CASE decision WHEN 'kept' THEN '' ELSE decision || ' for reason ' || (i % 7) END AS reason,
            CASE WHEN lot >= 60 THEN (hash(i * 7) % {CLUSTERS})::INTEGER END AS cluster,
            CASE decision WHEN 'duplicate' THEN i // 4 END AS "group",
            CASE decision WHEN 'duplicate' THEN
                format('{{:06d}}/{{:09d}}', (i // 4 * 4) // 10000, i // 4 * 4) END AS duplicate_of,
            CASE decision WHEN 'duplicate' THEN ({DEDUP} + 0.2 * x)::FLOAT END AS duplicate_similarity,
            CASE WHEN lot >= 365 THEN format('seed{{:05d}}.jpg', hash(i) % 5000) END AS nearest_seed,
            CASE WHEN lot >= 365 THEN x::FLOAT END AS seed_similarity,
            NULL::VARCHAR AS output_shard, NULL::VARCHAR AS output_key
        FROM decided ORDER BY key
    """,
    "retrieval": """
        SELECT key, rank::SMALLINT AS rank, format('seed{:05d}.jpg', hash(key || rank) % 5000) AS seed_key,
            (seed_similarity - rank / 100)::FLOAT AS similarity, 'threshold' AS strategy, 'seed' AS seed
        FROM images, range(5) AS t(rank) WHERE seed_similarity IS NOT NULL ORDER BY key, rank
    """,
    "duplicates": """
        SELECT "group", key, row_number() OVER (PARTITION BY "group" ORDER BY key) = 1 AS representative,
            duplicate_similarity AS similarity, 'near' AS method
        FROM images WHERE "group" IS NOT NULL ORDER BY "group", key
    """,
    "pairs": """
        SELECT key, lag(key) OVER (ORDER BY key) AS better,
            (0.6 + (hash(key) % 4000) / 10000)::FLOAT AS similarity
        FROM images WHERE decision IN ('duplicate', 'kept')
        QUALIFY better IS NOT NULL ORDER BY key
    """,
    "regrouped": """
        SELECT i / 200 AS threshold, i AS copies, i AS groups, i AS members, i AS standing,
            0 AS undecided, i AS kept, i AS released, i AS of_kept FROM range(120, 201) AS t(i)
    """,
}


def make(out: Path, images: int) -> None:
    """Write the tables and counts of a result of so many images."""
    reports = out / "reports"
    reports.mkdir(parents=True)
    with duckdb.connect() as made:
        made.execute("SET threads = 1")
        for name, query in TABLES.items():
            asked = [images] if name == "images" else []
            made.execute(f"CREATE TABLE {name} AS {query}", asked)
            made.execute(f"COPY {name} TO '{reports}/{name}.parquet' (COMPRESSION zstd)")
        counted = dict(made.sql("SELECT decision, count(*) FROM images GROUP BY 1").fetchall())
    funnel = {
        "images": images,
        "decisions": {name: counted.get(name, 0) for name in DECISIONS},
        "thresholds": {
            "dedup": {"value": DEDUP, "source": "pipeline"},
            "retrieve": {"value": RETRIEVE, "source": "pipeline"},
        },
        "dedup_pairs": {"floor": 0.6, "pairs": images, "per_image": 8, "left_out": 0},
    }
    (reports / "funnel.json").write_text(json.dumps(funnel))
    (out / "run.json").write_text(json.dumps({"crawl": "made", "seed": "seed"}))
    (out / "clusters").mkdir()
    centroids = np.random.default_rng(0).standard_normal((CLUSTERS, DIM), np.float32)
    np.save(out / "clusters" / "centroids.npy", centroids)


def noise(key: str) -> bytes:
    """Return a JPEG of noise that is the key's own."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4])
    pixels = np.random.default_rng(seed).integers(0, 256, (300, 400, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def _own_mebibytes() -> float:
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


@click.command()
@click.option("--images", default=1_000_000, help="Of the smallest result.")
@click.option("--doublings", default=0, help="How often the number of images is doubled.")
@click.option("--work", type=click.Path(path_type=Path), help="Where files are built.")
def main(images: int, doublings: int, work: Path | None) -> None:
    """Print a line for each size."""
    for count in (images * 2**step for step in range(doublings + 1)):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            out = Path(folder) / "out"
            make(out, count)
            before, ended = _own_mebibytes(), threading.Event()
            peak = [before]

            def look(peak: list[float] = peak, ended: threading.Event = ended) -> None:
                while not ended.wait(SECONDS):
                    peak[0] = max(peak[0], _own_mebibytes())

            watch = threading.Thread(target=look)
            used = resource.getrusage(resource.RUSAGE_SELF).ru_utime
            watch.start()
            try:
                pictures(out, noise, {"seed": noise})
            finally:
                ended.set()
                watch.join()
            used = resource.getrusage(resource.RUSAGE_SELF).ru_utime - used
            pages = sorted((out / "reports").glob("*.html"))
            largest = max(path.stat().st_size for path in pages)
            click.echo(
                f"{count:>10,} images {used:7.1f} CPU s {peak[0] - before:6.0f} MiB "
                f"{len(pages)} pages, the largest {largest / 1e6:.1f} MB"
            )


if __name__ == "__main__":
    main()
