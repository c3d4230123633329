"""A small crawl that grows, the commands on it, and the rule of what goes on from an earlier result."""

import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
from click.testing import CliRunner
from pictures import encoded, picture, write_tar
from result_content import content

from curate.catalogue.collection import Collection
from curate.cli import main

CONFIG = """
datasets:
  crawl: {path: ROOT/crawl}
  seed: {path: ROOT/seed}
  held: {path: ROOT/held}
  own: {path: ROOT/own}
embedders:
  descriptor: {kind: descriptor}
pipelines:
  default:
    crawl: crawl
    seed: seed
    embedder: descriptor
    calibrate: {originals: 8, crawl_sample: 8}
    cluster: {clusters: 3}
    dedup: {threshold: 0.95}
    retrieve: {threshold: -1}
    report: {pictures: false}
    estimate: {pairs: 2}
"""
LARGE = (96, 80)


OWN = (
    "--set=seeds={own: {include: true, strategy: none}, seed: {threshold: -1}}",
    "--set=seed=null",
)


class Site:
    """A crawl that grows, and where commands leave their results."""

    def __init__(self, root, monkeypatch):
        self.root, self.data, self.work, self.out = root, root / "data", root / "work", root / "out"
        monkeypatch.chdir(root)
        old = {f"{n:03d}.jpg": encoded(picture(n)) for n in range(12)}
        write_tar(self.data / "crawl" / "00001.tar", old)
        more = {f"{n:03d}.jpg": encoded(picture(n)) for n in range(12, 24)}
        write_tar(
            self.data / "crawl" / "00002.tar", more | {"copy.png": encoded(picture(3), "PNG")}
        )
        for name, numbers in {"seed": range(100, 109), "held": [50], "own": [60, 61]}.items():
            (self.data / name).mkdir()
            for n in numbers:
                (self.data / name / f"{n}.jpg").write_bytes(encoded(picture(n)))
        (root / "pipelines.yaml").write_text(CONFIG.replace("ROOT", str(self.data)))

    def grow(self):
        """Add a part whose keys come first: new pictures, and better copies of old ones."""
        new = {f"{n:03d}.jpg": encoded(picture(n)) for n in range(30, 40)}
        better = {f"better{n}.jpg": encoded(picture(n, LARGE)) for n in (1, 14)}
        same = {"same2.jpg": encoded(picture(2)), "same31.png": encoded(picture(31, LARGE), "PNG")}
        write_tar(self.data / "crawl" / "00000.tar", new | better | same)

    def __call__(self, command, *words, status=0):
        asked = [command, *map(str, words)]
        if command in ("run", "update"):
            asked += [] if any("--executor" in word for word in asked) else ["--executor=inline"]
            asked += [] if any("--work" in word for word in asked) else [f"--work={self.work}"]
        if command == "run":
            asked += [] if any("--out" in word for word in asked) else [f"--out={self.out}"]
            asked += ["--set=export.shard_size=7"]
        result = CliRunner().invoke(main, asked)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result.output

    def rows(self, table="images"):
        found = pq.read_table(self.out / "reports" / f"{table}.parquet").to_pylist()
        return {row["key"]: row for row in found}

    def files(self):
        return content(self.out)

    def json(self, name):
        return json.loads((self.out / name).read_text())

    def require_whole(self):
        """Compare what the shards hold with what the tables say that they hold."""
        held, told = {}, {}
        for path in sorted((self.out / "shards").glob("*.tar")):
            with tarfile.open(path) as tar:
                for entry in tar:
                    if entry.name.endswith(".json"):
                        sample = json.load(tar.extractfile(entry))
                        held[entry.name.removesuffix(".json")] = sample["sha256"]
        for name in ("images", "seed_images"):
            if (self.out / "reports" / f"{name}.parquet").exists():
                rows = self.rows(name).values()
                told |= {row["output_key"]: row["sha256"] for row in rows if row["output_key"]}
        assert held == told
        self("verify", self.out)


def load_crawl(site):
    """Return the crawl of the result, and of its images keys, facts and stored vectors in float64."""
    content = site.json("run.json")["datasets"]["crawl"]["content"]
    crawl = Collection(site.work / "catalogue" / content / "all")
    everyone = np.arange(len(crawl))
    facts = crawl.facts(everyone, ["sha256", "width", "height", "bytes"]).to_pylist()
    vectors = crawl.vectors(everyone).astype(np.float64)
    return crawl.keys(everyone), facts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rank_by_the_rule(keys, facts, exported):
    """Return an image for each content, what is exported first, in the order of rank; and by their hash."""

    def rank(n):
        fact = facts[n]
        pixels = fact["width"] * fact["height"]
        return keys[n] not in exported, -pixels, -fact["bytes"], keys[n]

    by_bytes = {}
    for n in sorted(range(len(keys)), key=lambda n: (keys[n] not in exported, keys[n])):
        by_bytes.setdefault(facts[n]["sha256"], n)
    return sorted(by_bytes.values(), key=rank), by_bytes


def decide_by_the_rule(site, exported, threshold, floor):
    """Return decision and representative of every key, from all pairs of stored vectors in float64.

    What is exported comes first, in the order of rank, and stands for itself; then the best first.
    """
    keys, facts, vectors = load_crawl(site)
    content = site.json("run.json")["datasets"]["seed"]["content"]
    seed = Collection(site.work / "catalogue" / content / "all")
    seeds = seed.vectors(np.arange(len(seed))).astype(np.float64)
    seeds /= np.linalg.norm(seeds, axis=1, keepdims=True)
    ranked, by_bytes = rank_by_the_rule(keys, facts, exported)
    stands, decided = [], {}
    for n in ranked:
        near = [r for r in stands if vectors[n] @ vectors[r] >= threshold]
        if near and keys[n] not in exported:
            decided[keys[n]] = "duplicate", keys[near[0]]
        else:
            stands.append(n)
            relevant = keys[n] in exported or (seeds @ vectors[n]).max() >= floor
            decided[keys[n]] = "kept" if relevant else "irrelevant", None
    for n, key in enumerate(keys):
        first = by_bytes[facts[n]["sha256"]]
        if first != n:
            decided[key] = "duplicate", decided[keys[first]][1] or keys[first]
    return decided
