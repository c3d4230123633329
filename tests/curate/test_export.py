"""Shards hold the very bytes that were embedded, wherever these are fetched from."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from failing_storage import Rule, failing, script
from made_collection import (
    Made,
    candidates_of,
    chosen_by_threshold,
    clustered,
    files_of,
    grouped,
    made_collection,
    searched,
)
from pictures import (
    ColourEmbedder,
    colour_request,
    embed_by_colours,
    encoded,
    picture,
    write_tar,
)
from PIL import Image

from curate.catalogue.collection import Collection, PartOutputs
from curate.catalogue.content import key_prefix
from curate.catalogue.originals import save_parts
from curate.catalogue.write import Judged, catalogue
from curate.embedding.request import EmbedSettings
from curate.export.bounds import bound_shards
from curate.export.kept_facts import gather_facts, sort_facts
from curate.export.shards import ExportSettings, Kept, export_shard
from curate.export.spill import Source, needs_spill, spill
from curate.retrieval.nearest_seeds import NearestSeeds, Retrieved
from curate.selection.decide import select
from curate.selection.wishes import Wish
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.errors import LvdError

MEMBERS = {f"{number:02d}.jpg": encoded(picture(number)) for number in range(14)}
MEMBERS |= {f"{number:02d}.png": encoded(picture(number), "PNG") for number in range(14, 18)}
MEMBERS["20.gif"] = b"GIF89a, or so it says"
KEPT = 18


def kept_of(work, path, settings=None):
    """Take a crawl through all stages up to select, where everything readable is kept."""
    parts = list_parts("crawl", DatasetSettings(path=str(path), folder_parts=3))
    parts = sorted(parts, key=lambda part: part.name + "/")
    request, outputs = colour_request(work), []
    for part in parts:
        units = request.units(embed_by_colours(part, request))
        facts, vectors = (str(unit.relative_to(work)) for unit in units)
        folder = part.format == "folder"
        outputs.append(PartOutputs(part.name, key_prefix(part), facts, None, vectors, folder))
    home = work / "catalogue" / "x" / "all"
    home.mkdir(parents=True)
    catalogue(outputs, work, Judged(), out=home)
    crawl = Collection(home)
    embedder = ColourEmbedder()
    vectors = embedder.embed([embedder.prepare(picture(number)) for number in (0, 5)])
    seeds = [Made(f"s/{row}", vector) for row, vector in enumerate(vectors)]
    seed = made_collection(work, seeds, name="seed")
    clusters, _ = clustered(crawl, work)
    groups, _ = grouped(crawl, clusters, work, 0.9999)
    dropped, retrieved = searched(crawl, groups, seed, [], work)
    selected = work / "select"
    selected.mkdir()
    candidates = candidates_of(crawl, groups, dropped, retrieved, work)
    chosen, _ = chosen_by_threshold(candidates, -1.0, None, work)
    wishes = [Wish(candidates, chosen, None)]
    dealt = select(crawl, groups, dropped, wishes, [], [], None, 0, out=selected)
    file = save_parts(parts, work / "parts.json")
    limit = EmbedSettings().max_pixels
    nearest = NearestSeeds((Retrieved("seed", seed, tuple(retrieved), "r", crawl.block),), 5)
    source = Source(crawl, file, selected / "position-0.npy", 0, {})
    settings = settings or ExportSettings()
    limits = settings.shard_size, settings.shard_bytes
    bounds = bound_shards(work / "bounds.npy", [crawl], selected, dealt["exported"], *limits)
    blocks = []
    for start, stop in crawl.blocks():
        blocks.append(work / f"sort-{start}")
        blocks[-1].mkdir()
        sort_facts(source, 0, nearest, start, stop, out=blocks[-1])
    laid = []
    for first in range(0, len(bounds), 2):
        ends = int(bounds.edges[first]), int(bounds.edges[min(first + 2, len(bounds))])
        laid.append(work / f"facts-{first}")
        laid[-1].mkdir()
        gather_facts(blocks, *ends, out=laid[-1])
    return Kept((source,), bounds, tuple(laid), 2, limit), parts


def exported(work, path, settings=None):
    """Return the files of all shards of a crawl."""
    settings = settings or ExportSettings(shard_size=8)
    kept, parts = kept_of(work, path, settings)
    lay_down(kept, parts, work, settings.members)
    shards = work / "shards"
    shards.mkdir()
    for shard in range(len(kept.bounds)):
        export_shard(kept, shard, settings, out=shards)
    return files_of(shards), kept.sources[0]


def lay_down(kept, parts, work, members=()):
    [source] = kept.sources
    for index, part in enumerate(parts):
        if members or needs_spill(part):
            source.spills[index] = work / f"spill-{index}"
            source.spills[index].mkdir()
            spill(source, index, part, members, out=source.spills[index])


def samples_of(files):
    """Return (JSON, extension, bytes) of every sample, in order."""
    found = []
    for name in sorted(files):
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(files[name])) as tar:
                members = {entry.name: tar.extractfile(entry).read() for entry in tar}
            for member, data in members.items():
                key, _, extension = member.partition(".")
                if extension != "json":
                    found.append((json.loads(members[f"{key}.json"]), extension, data))
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return the shards of the members in one uncompressed tar, and their source."""
    work = tmp_path_factory.mktemp("plain")
    return exported(work, write_tar(work / "in" / "p.tar", MEMBERS))


def test_every_kept_image_is_in_one_shard_in_the_order_of_select(plain):
    files, source = plain
    order = np.load(source.position.parent / "order.npy")
    samples = samples_of(files)
    assert [row["source_key"] for row, *_ in samples] == source.data.keys(order)
    assert len(samples) == len({row["source_key"] for row, *_ in samples}) == KEPT
    assert [row["key"] for row, *_ in samples] == [
        f"{place // 8:05d}{place % 8:04d}" for place in range(KEPT)
    ]
    counts = [json.loads(files[f"{shard:05d}_stats.json"])["count"] for shard in range(3)]
    assert counts == [8, 8, 2]
    assert len(files) == 9


def test_jpeg_bytes_are_untouched_and_the_rest_becomes_jpeg(plain):
    for row, extension, data in samples_of(plain[0]):
        original = MEMBERS[row["source_member"]]
        assert extension == "jpg"
        if row["source_member"].endswith("jpg"):
            assert data == original
        else:
            there, here = (Image.open(io.BytesIO(x)).convert("RGB") for x in (original, data))
            assert np.abs(np.asarray(there, int) - np.asarray(here, int)).mean() < 3


def test_a_sample_says_where_it_is_from_and_which_seed_it_is_near(plain):
    files, source = plain
    rows = {row["source_key"]: row for row, *_ in samples_of(files)}
    assert rows["p/05"]["nearest_seed"] == "s/1"
    assert rows["p/05"]["seed_similarity"] == pytest.approx(1, abs=1e-2)
    everyone = source.data.facts(np.arange(len(source.data))).to_pylist()
    for fact in everyone:
        if not fact["problem"]:
            row = rows[fact["key"]]
            assert (row["sha256"], row["source_part"]) == (fact["sha256"], "p")
            assert (row["width"], row["height"]) == (48, 40)


def test_the_same_crawl_gives_the_same_bytes(tmp_path, plain):
    again, _ = exported(tmp_path, write_tar(tmp_path / "elsewhere" / "p.tar", MEMBERS))
    assert again == plain[0]


def test_a_compressed_tar_gives_the_bytes_of_a_plain_one(tmp_path, plain):
    zipped, source = exported(tmp_path, write_tar(tmp_path / "in" / "p.tar.gz", MEMBERS, "w:gz"))
    assert len(source.spills) == 1
    assert zipped == plain[0]


def test_the_order_of_members_changes_no_byte(tmp_path, plain):
    backwards = dict(reversed(MEMBERS.items()))
    again, _ = exported(tmp_path, write_tar(tmp_path / "in" / "p.tar", backwards))
    assert again == plain[0]


def test_a_parquet_file_gives_the_pictures_of_a_tar(tmp_path, plain):
    rows = {
        "key": [name.partition(".")[0] for name in MEMBERS],
        "image": list(MEMBERS.values()),
    }
    path = tmp_path / "in" / "p.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table(rows), path, row_group_size=5)
    files, source = exported(tmp_path, path)
    assert len(source.spills) == 1

    def pictures(files):
        return [(row["source_key"], row["sha256"], data) for row, _, data in samples_of(files)]

    assert pictures(files) == pictures(plain[0])


def test_a_folder_gives_every_file_once(tmp_path):
    for name, data in MEMBERS.items():
        path = tmp_path / "in" / f"deep {name[0]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    files, source = exported(tmp_path, tmp_path / "in", ExportSettings(encode="never"))
    assert len(source.data.parts) > 1
    assert {row["source_key"]: data for row, _, data in samples_of(files)} == {
        f"deep {name[0]}/{name}": data for name, data in MEMBERS.items() if name != "20.gif"
    }
    assert {extension for _, extension, _ in samples_of(files)} == {"jpg", "png"}


def test_many_parts_whose_names_and_keys_sort_differently(tmp_path):
    names = list(MEMBERS)[:KEPT]
    for at, part in enumerate(["a", "a-b", "a.b", "a/c", "b"]):
        ending = ".tar.gz" if at % 2 else ".tar"
        members = {name: MEMBERS[name] for name in names[at::5]}
        write_tar(tmp_path / "in" / f"{part}{ending}", members, "w:gz" if at % 2 else "w")
    files, source = exported(tmp_path, tmp_path / "in", ExportSettings(encode="never"))
    assert len(source.spills) == 2
    got = {row["source_member"]: data for row, _, data in samples_of(files)}
    assert got == {name: MEMBERS[name] for name in names}


@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz")])
def test_bytes_that_changed_since_they_were_embedded_stop_the_export(tmp_path, ending, mode):
    path = write_tar(tmp_path / "in" / f"p.{ending}", MEMBERS, mode)
    kept, parts = kept_of(tmp_path, path)
    other = {name: data[:-9] + b"tampered!" for name, data in MEMBERS.items()}
    write_tar(path, other, mode)

    def export():
        lay_down(kept, parts, tmp_path)
        export_shard(kept, 0, ExportSettings(), out=tmp_path)

    with pytest.raises(LvdError, match=r"part p changed .* run the same command again") as caught:
        export()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz")])
def test_a_part_that_lost_its_members_stops_the_export(tmp_path, ending, mode):
    path = write_tar(tmp_path / "in" / f"p.{ending}", MEMBERS, mode)
    kept, parts = kept_of(tmp_path, path)
    write_tar(path, {"00.jpg": MEMBERS["00.jpg"]}, mode)

    def export():
        lay_down(kept, parts, tmp_path)
        export_shard(kept, 0, ExportSettings(), out=tmp_path)

    with pytest.raises(LvdError, match=r"it changed after|part p changed"):
        export()


def test_pictures_are_encoded_under_the_limit_that_they_were_admitted_under(tmp_path):
    kept, _ = kept_of(tmp_path, write_tar(tmp_path / "in" / "p.tar", MEMBERS))
    with pytest.raises(LvdError, match="over the limit of 10 pixels"):
        export_shard(replace(kept, max_pixels=10), 0, ExportSettings(), out=tmp_path)


def test_a_shard_reads_no_facts_of_parts(tmp_path, monkeypatch):
    kept, _ = kept_of(tmp_path, write_tar(tmp_path / "in" / "p.tar", MEMBERS))
    monkeypatch.setattr(Collection, "facts_of_part", None)
    export_shard(kept, 0, ExportSettings(), out=tmp_path)
    assert (tmp_path / "00000.tar").exists()


def test_a_shard_that_failed_leaves_no_mark(tmp_path):
    path = write_tar(tmp_path / "in" / "p.tar", MEMBERS)
    kept, _ = kept_of(tmp_path, path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"p\.tar"):
        export_shard(kept, 0, ExportSettings(), out=tmp_path)
    assert not list(tmp_path.glob("*_stats.json"))


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_storage_that_fails_for_a_moment_costs_an_export_nothing(tmp_path, monkeypatch, ending):
    path = write_tar(tmp_path / "in" / f"p.{ending}", MEMBERS, "w:gz" if "gz" in ending else "w")
    monkeypatch.setenv("FAILING_STORAGE", script(tmp_path)["FAILING_STORAGE"])
    expected, _ = exported(tmp_path / "plain", path)
    settings = ExportSettings(shard_size=8)
    kept, parts = kept_of(tmp_path / "failing", failing(path), settings)
    script(tmp_path, Rule("read", "throttled", skip=1, times=4), Rule("open", "lost", times=2))
    lay_down(kept, parts, tmp_path)
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        export_shard(kept, shard, settings, out=tmp_path / "shards")
    assert files_of(tmp_path / "shards") == expected


def test_storage_that_goes_on_failing_is_no_final_error_of_an_export(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "in" / "p.tar", MEMBERS)
    monkeypatch.setenv("FAILING_STORAGE", script(tmp_path)["FAILING_STORAGE"])
    kept, _ = kept_of(tmp_path, failing(path))
    script(tmp_path, Rule("read", "timed out"))
    with pytest.raises(TimeoutError):
        export_shard(kept, 0, ExportSettings(), out=tmp_path)
    assert not list(tmp_path.glob("*_stats.json"))
