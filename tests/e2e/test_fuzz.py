"""A crawl that grows, changes, is retried and killed in random order ends as that of a clean run."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from curated_site import Site, leftovers, result
from drawn_crawl import encoded, wave, write_tar
from killed_runs import run_killed

CONFIG = """
datasets:
  seed: {path: ROOT/seed}
  exam: {path: ROOT/exam}
  crawl: {path: CRAWL, folder_parts: 2}
embedders:
  descriptor: {kind: descriptor, thresholds: {dedup: 0.85, retrieve: 0.2}}
pipelines:
  default:
    crawl: crawl
    seed: seed
    holdouts: [exam]
    embedder: descriptor
    filters: []
    calibrate: {originals: 8, crawl_sample: 8}
    cluster: {clusters: 2}
    export: {shard_size: 4}
    report: {pictures: false}
"""
STEPS = 5
SEEDS = (0, 1, 3)


class Fuzzed:
    """A small crawl of tars and loose images, its settings, and the random steps that change it."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random, self.count = root, random.Random(seed), 0
        self.crawl = root / "crawl"
        self.places = [self.crawl]
        self.settings = {"filters": "[]", "dedup.threshold": "0.85", "retrieve.threshold": "0.2"}
        self.site = Site(root, root, root / "work")
        self.log: list[str] = []
        for name, numbers in (("seed", (50, 51, 52)), ("exam", (1,))):
            (root / name).mkdir()
            for n in numbers:
                (root / name / f"{n}.jpg").write_bytes(encoded(wave(n)))
        for name in ("tars", "loose"):
            (self.crawl / name).mkdir(parents=True)
        for _ in range(3):
            self.add_a_tar()
        for _ in range(6):
            self.add_an_image()
        (self.crawl / "loose" / "cut.jpg").write_bytes(encoded(wave(2))[:2000])

    def step(self) -> None:
        """Change one thing, run to the end or into a kill, and then perhaps run again."""
        change: Callable[[], None] = self.random.choice(
            [
                *(self.add_a_tar, self.add_an_image, self.change_bytes, self.touch, self.rename),
                *(self.move, self.remove, self.change_settings, self.do_nothing),
            ]
        )
        change()
        self.log.append(change.__name__)
        extra = self.random.choice([[], [], ["--retry=corrupt"]])
        for _ in range(self.random.choice([0, 1, 1, 2])):
            count = self.random.choice([30, 100, 200, 300]) + self.random.randrange(60)
            self.log.append(f"killed at {count} {extra}")
            run_killed(self.arguments(*extra), self.root, count=count)
        if self.random.random() < 0.5:
            self.log.append(f"run {extra}")
            self.site.run(*self.words(*extra))

    def words(self, *extra: str) -> list[str]:
        """Return what a run is told beside where it works."""
        paths = [str(self.crawl / name) for name in ("tars", "loose")]
        config = CONFIG.replace("ROOT", str(self.root)).replace("CRAWL", json.dumps(paths))
        (self.root / "pipelines.yaml").write_text(config)
        return [
            "--replace",
            *(f"--set={key}={value}" for key, value in self.settings.items()),
            *extra,
        ]

    def arguments(self, *extra: str) -> list[str]:
        return self.site.arguments(*self.words(*extra))

    def clean(self) -> dict[str, bytes]:
        """Return what a run makes of all this that finds nothing done before."""
        site = Site(self.root / "clean", self.root, self.root / "clean" / "work")
        site.run(*self.words())
        made = self.result(site.root / "out")
        shutil.rmtree(site.root)
        return made

    def result(self, out: Path) -> dict[str, bytes]:
        """Return what is in `out` but for where the crawl lay."""
        return result(out, *sorted(map(str, self.places), key=len, reverse=True))

    def picture(self) -> bytes:
        """Return one of a few pictures, so that there are copies."""
        return encoded(wave(self.random.randrange(12)), quality=self.random.choice([60, 90]))

    def some_file(self) -> Path:
        return self.random.choice(sorted(path for path in self.crawl.rglob("*") if path.is_file()))

    def add_a_tar(self) -> None:
        self.count += 1
        files = {}
        for n in range(self.random.randrange(1, 5)):
            files[f"{n}.jpg"] = self.picture()
            files[f"{n}.json"] = json.dumps({"nsfw": self.random.random()}).encode()
        if self.random.random() < 0.3:
            files["bad.jpg"] = b"no picture"
        write_tar(self.crawl / "tars" / f"{self.count:03d}.tar", files)

    def add_an_image(self) -> None:
        self.count += 1
        (self.crawl / "loose" / f"{self.count:03d}.jpg").write_bytes(self.picture())

    def change_bytes(self) -> None:
        """Change a file in its place, so that neither size nor time tells."""
        path = self.some_file()
        before, data = path.stat(), bytearray(path.read_bytes())
        at = self.random.randrange(600, len(data) - 20)
        data[at : at + 16] = self.random.randbytes(16)
        with path.open("r+b") as stream:
            stream.write(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def touch(self) -> None:
        self.some_file().touch()

    def rename(self) -> None:
        self.count += 1
        path = self.some_file()
        path.rename(path.with_stem(f"{self.count:03d}"))

    def move(self) -> None:
        self.count += 1
        moved = self.root / f"crawl{self.count}"
        self.crawl.rename(moved)
        self.crawl = moved
        self.places.append(moved)

    def remove(self) -> None:
        path = self.some_file()
        if len(list(path.parent.iterdir())) > 2:
            path.unlink()

    def change_settings(self) -> None:
        name = self.random.choice(sorted(self.settings))
        filters = ("[]", "[{column: nsfw, max: 0.5}]", "[{column: nsfw, min: 0.2}]")
        self.settings[name] = self.random.choice({"filters": filters}.get(name, ("0.5", "0.9")))

    def do_nothing(self) -> None:
        pass


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happened_before_the_result_is_that_of_a_clean_run(tmp_path, seed):
    fuzzed = Fuzzed(tmp_path, seed)
    for _ in range(STEPS):
        fuzzed.step()
    fuzzed.site.run(*fuzzed.words())
    assert fuzzed.result(tmp_path / "out") == fuzzed.clean(), fuzzed.log
    assert leftovers(fuzzed.site) == [], fuzzed.log
