"""What hashes before embedding save: the processor's seconds of stage embed with and without them.

Embedding in one pass decodes a picture once. With `embed.once: hash` every picture is decoded for its
hash, and those that are embedded once more: that saves time where the share of copies is above that of
decoding. Each way runs whole, in a work folder of its own; loading the networks counts in both.

    .venv/bin/python benchmarks/hash_first.py --images DATA/crawl-small/crawl
"""

from __future__ import annotations

import resource
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.labelled import write_table
from curate.catalogue.write import Judged
from curate.dedup.hash_first import embed_by_hash
from curate.dedup.hashes import METHODS, HashName
from curate.dedup.near import DedupSettings
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.embedding.stage import embed
from curate.execution.session import open_runner
from curate.filters.quality import QualitySettings
from curate.stage import EngineSettings
from shared.datasets.dataset import DatasetSettings, Part, list_parts
from shared.embedders.embedder import resolve
from shared.embedders.settings import EmbedderSettings, bundled_settings

UNTRAINED = {
    "kind": "timm",
    "model": "vit_small_patch14_dinov2",
    "pretrained": False,
    "image_size": 224,
}
"""The network of `dinov2-s`; what it has learned does not matter to its speed."""
WAYS = {
    "bundled": [bundled_settings("bundled-copies"), bundled_settings("bundled")],
    "dinov2-s": [bundled_settings("bundled-copies"), EmbedderSettings(**UNTRAINED)],
}


@click.command()
@click.option("--images", "path", required=True, help="A dataset.")
@click.option("--hash", "names", multiple=True, default=list(METHODS), show_default=True)
@click.option(
    "--by", multiple=True, default=list(WAYS), show_default=True, type=click.Choice(list(WAYS))
)
@click.option("--rounds", default=1, show_default=True, help="Of each way; the fastest counts.")
def main(path: str, names: tuple[str, ...], by: tuple[str, ...], rounds: int) -> None:
    """Print what stage embed takes with each hash before it, and without."""
    parts = list_parts("crawl", DatasetSettings(path=path))
    rows = []
    for way in by:
        embedders = tuple(resolve(each) for each in WAYS[way])
        for name in names:
            taken = [
                [time_embedding(parts, embedders, name, once) for once in (False, "hash")]
                for _ in range(rounds)
            ]
            plain, first = (min(seconds for seconds, _ in way) for way in zip(*taken, strict=True))
            _, counts = taken[0][1]
            told = f"{plain:.1f}", f"{first:.1f}", f"{1 - first / plain:+.3f}"
            rows.append([f"`{way}`", f"`{name}`", counts["images"], counts["lent"], *told])
    header = ("meaning by", "hash", "images", "lent", "without, CPU s", "with, CPU s", "saved")
    click.echo(write_table(header, rows))


def time_embedding(
    parts: list[Part],
    embedders: tuple[EmbedderSettings, ...],
    name: HashName,
    once: Literal[False, "hash"],
) -> tuple[float, dict[str, int]]:
    """Return the processor's seconds until a crawl is embedded, and how many images are lent a vector.

    What a hash is made of is taken of all pictures, whether it comes before embedding or after.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work, looks = Path(folder), ("luminance", METHODS[name].look)
        request = EmbedRequest(work, EmbedSettings(once=once), embedders, (), 1, looks)
        runner = stack.enter_context(open_runner(work, EngineSettings(), "inline"))
        stack.enter_context(runner.at_work("embed"))
        before = _seconds()
        if once == "hash":
            judged = Judged(QualitySettings())
            how = DedupSettings(hash=name)
            done = embed_by_hash(runner, "crawl", parts, request, how, judged)
        else:
            done = embed(runner, "crawl", "crawl", parts, request)
        return _seconds() - before, done.lent


def _seconds() -> float:
    """Return the user's time of this process and of those it has started and that have ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime for each in used)


if __name__ == "__main__":
    main()
