"""Copies by hash: images of one hash are a group before any vector is compared, and flat ones have none."""

import json
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from made_collection import (
    Made,
    best_first,
    blocks_of,
    clear,
    clumps,
    clustered,
    exact_cosines,
    grouped,
    made_collection,
)
from pictures import encoded, picture, write_tar
from PIL import Image
from test_exported import as_exported
from test_groups import reference_components, reference_greedy

from curate.cli import main
from curate.dedup import hashes
from curate.dedup.bar import Bar
from curate.dedup.groups import REPRESENTATIVE
from curate.dedup.hashes import BITS, METHODS, STEPS, principal_directions
from curate.dedup.near import DedupSettings
from curate.dedup.settle import settle_component
from curate.filters import grey, phash
from curate.neighbours.cluster import ClusterSettings
from curate.neighbours.search import Searchable

WAYS = [
    {},
    {"edges_per_image": 1},
    {"groups": "components"},
    {"groups": "components", "search": "pool", "neighbours": 1_000},
]


def reference_groups(rank_order, exact, threshold, digests, exported, mode):
    """Return who stands for every image, by brute force over all pairs and the definition."""
    count = len(rank_order)
    rank = np.argsort(rank_order)
    best = {}
    for number in rank_order:
        if digests[number] is not None:
            best.setdefault(digests[number], number)
    stands = [n if n in exported or digests[n] is None else best[digests[n]] for n in range(count)]
    alive = [n for n in range(count) if stands[n] == n]
    pairs = [
        (max(rank[a], rank[b]), min(rank[a], rank[b]))
        for a in alive
        for b in alive
        if a != b and exact[a, b] >= threshold
    ]
    if mode == "greedy":
        pairs = [(worse, better) for worse, better in pairs if worse >= len(exported)]
    reference = reference_greedy if mode == "greedy" else reference_components
    found = rank_order[reference(pairs, count)][rank]
    found[list(exported)] = list(exported)
    return [int(found[stands[n]]) for n in range(count)]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    way=st.sampled_from(WAYS),
    kinds=st.sampled_from([3, 40, 400]),
    held=st.sampled_from([0, 12]),
    block=st.sampled_from([7, 10**9]),
)
def test_groups_by_hash_and_by_vectors_are_those_of_brute_force(
    tmp_path_factory, seed, way, kinds, held, block
):
    work = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(seed)
    vectors = clumps(seed, 8, 10, 6, 0.5)
    digests = [f"{rng.integers(kinds):016x}" if rng.random() < 0.7 else None for _ in vectors]
    sides = rng.integers(50, 60, (len(vectors), 2)).tolist()
    images = [
        Made(f"p{row // 30}/{row:03d}", vector, tuple(side), phash=digest)
        for row, (vector, side, digest) in enumerate(zip(vectors, sides, digests, strict=True))
    ]
    exported = rng.permutation(len(images))[:held].tolist()
    kept = None
    if exported:
        kept = as_exported(work, made_collection(work, images, name="plain"), exported)
    exact = exact_cosines(vectors, vectors)
    threshold = clear(exact, 0.9)
    with blocks_of(block):
        collection = made_collection(work, images, exported=kept)
        clusters, _ = clustered(collection, work, ClusterSettings(clusters=4))
        chosen = DedupSettings(hash="phash", **way)
        found, _ = grouped(collection, clusters, work, threshold, chosen)
    order = best_first(collection, work)
    expected = reference_groups(
        order, exact, threshold, digests, set(exported), way.get("groups", "greedy")
    )
    assert np.load(found / "representative.npy").tolist() == expected


def test_the_search_leaves_out_what_is_covered(tmp_path):
    vectors = np.eye(4)[[0, 0, 1, 1]]
    images = [
        Made(f"p/{n}", vector, (60 - n, 50), phash="0" * 15 + str(n // 2))
        for n, vector in enumerate(vectors)
    ]
    collection = made_collection(tmp_path, images)
    clusters, _ = clustered(collection, tmp_path)
    for name, edges in (("none", 2), ("phash", 0)):
        grouped(collection, clusters, tmp_path / name, 0.9, DedupSettings(hash=name))
        [folder] = (tmp_path / name).glob("dedup/*/pass-0/search-*")
        assert len(np.load(folder / "edges.npy")) == edges


@pytest.mark.parametrize("chosen", [{"chain_floor": 0.99}, {"keep": "centrality"}])
def test_copies_by_hash_stay_together_where_a_floor_parts_components(tmp_path, chosen):
    angles = np.radians([0, 40, 20, 50])
    images = [
        Made(f"p/{n}", (np.cos(angle), np.sin(angle)), (60 - n, 50), phash=digest)
        for n, (angle, digest) in enumerate(
            zip(angles, ["a" * 16, "a" * 16, None, "b" * 16], strict=True)
        )
    ]
    images.append(replace(images[1], key="p/4", content="p/1", size=(30, 50)))
    collection = made_collection(tmp_path, images)
    clusters, _ = clustered(collection, tmp_path)
    asked = DedupSettings(hash="phash", groups="components", **chosen)
    found, _ = grouped(collection, clusters, tmp_path, 0.93, asked)
    stands = np.load(found / "representative.npy").tolist()
    assert stands == ([0, 0, 2, 3, 0] if "chain_floor" in chosen else [2, 2, 2, 3, 2])
    status = np.load(found / "status.npy").tolist()
    assert [status[n] == REPRESENTATIVE for n in range(4)] == [n == stands[n] for n in range(4)]


@pytest.mark.parametrize("floor", [None, 0.9, 0.999])
@pytest.mark.parametrize("central", [False, True])
def test_copies_by_hash_follow_an_image_that_stays(floor, central):
    angles = np.radians([0, 10, 9, 60])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float16)
    members, together = Searchable(vectors, np.arange(4)), np.array([0, 0, 2, 0])
    stands = settle_component(members, together, Bar(0.5, 0.5), central, floor, fixed=2)
    # 1 and 3 have the hash of 0; 2 is nearer to 1, which stays
    assert stands.tolist() == [0, 1, {None: 0, 0.9: 0, 0.999: 1}[floor], 0]


def test_hashes_are_the_signs_along_the_components_of_a_decomposition():
    rng = np.random.default_rng(0)
    scales = np.linspace(60, 8, grey.SIDE**2)
    basis, _ = np.linalg.qr(rng.standard_normal((grey.SIDE**2, grey.SIDE**2)))
    drawn = 128 + (rng.standard_normal((2_000, len(scales))) * scales) @ basis
    pictures = np.clip(drawn, 0, 255).astype(np.uint8)
    directions, middle = principal_directions(pictures)
    centred = pictures - pictures.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    cosines = np.abs(np.einsum("kp,pk->k", axes[:BITS], directions / STEPS))
    np.testing.assert_allclose(cosines, 1, atol=1e-3)
    along = centred @ axes[:BITS].T * np.sign(np.einsum("kp,pk->k", axes[:BITS], directions))
    bits = pictures.astype(np.float64) @ directions > middle
    certain = np.abs(along) > 0.5
    assert certain.mean() > 0.95
    np.testing.assert_array_equal(bits[certain], along[certain] > 0)
    shuffled = rng.permutation(pictures)
    for one, other in zip((directions, middle), principal_directions(shuffled), strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_few_or_alike_pictures_none_has_a_hash(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (300, grey.SIDE**2)).astype(np.uint8)
    for some in (pictures[:255], np.repeat(pictures[:60], 6, axis=0)):
        directions, middle = principal_directions(some)
        np.savez(tmp_path / hashes.FITTED, directions=directions, middle=middle)
        column = pa.chunked_array([[row.tobytes() for row in some[:5]]])
        assert not METHODS["pca"].compute(column, tmp_path)[1].any()
    assert principal_directions(pictures[:256])[0].shape == (grey.SIDE**2, BITS)


def test_flat_pictures_have_no_hash():
    flat = Image.new("RGB", (300, 200), (90, 90, 90))
    noise = np.random.default_rng(0).integers(0, 256, (512, 512)).astype(np.uint8)
    for image in (flat, Image.fromarray(noise).convert("RGB")):
        assert grey.take(image) == {"grey": None}
        assert phash.take(image) == {"phash": None}
    taken = grey.take(picture(1, (160, 80)))["grey"]
    pixels = np.asarray(picture(1, (160, 80)).convert("L"), np.float64)
    means = pixels.reshape(16, 5, 16, 10).mean((1, 3)).reshape(-1)
    np.testing.assert_allclose(np.frombuffer(taken, np.uint8), means, atol=1)


CONFIG = """
datasets:
  crawl: {path: ROOT/crawl}
  seed: {path: ROOT/seed}
pipelines:
  default:
    crawl: crawl
    seed: seed
    embedder: descriptor
    calibrate: {originals: 8, crawl_sample: 8}
    cluster: {clusters: 3}
    dedup: {threshold: 0.9999, max_pair_share: 1}
    retrieve: {threshold: -1}
    estimate: {pairs: 0}
    report: {pictures: false}
"""
PICTURES = 270


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A crawl of small pictures: of some a larger copy, a copy of the same bytes, or a flat one."""
    root = tmp_path_factory.mktemp("hashes")
    members = {f"{n:03d}.png": encoded(detailed(n, 64), "PNG") for n in range(PICTURES)}
    members |= {f"{n:03d}large.png": encoded(detailed(n, 192), "PNG") for n in range(20)}
    members |= {f"{n:03d}same.png": members[f"{n:03d}.png"] for n in range(10)}
    members |= {
        f"flat{n}.png": encoded(Image.new("RGB", (64, 64), (n, 99, 99)), "PNG") for n in (0, 9)
    }
    write_tar(root / "crawl" / "00000.tar", members)
    (root / "seed").mkdir()
    (root / "seed" / "0.jpg").write_bytes(encoded(picture(1_000)))
    (root / "held").mkdir()
    (root / "held" / "0.png").write_bytes(encoded(detailed(3, 192), "PNG"))
    (root / "pipelines.yaml").write_text(CONFIG.replace("ROOT", str(root)))
    return root


def detailed(number, side):
    """Return a picture of which a smaller one shows as much."""
    coarse = np.random.default_rng(number).integers(0, 256, (10, 10, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def run(root, name, *words, status=0):
    asked = [f"--config={root}/pipelines.yaml", f"--out={root}/{name}", f"--work={root}/work"]
    result = CliRunner().invoke(main, ["run", "--executor=inline", *asked, *words])
    assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
    return root / name, result.output


def tables(out):
    for name in ("images", "duplicates"):
        rows = pq.read_table(out / "reports" / f"{name}.parquet").to_pylist()
        yield {row["key"].rpartition("/")[2]: row for row in rows}


@pytest.mark.parametrize(("name", "title"), [("pca", "PCA hash"), ("phash", "pHash")])
def test_a_run_says_which_copies_a_hash_found(root, monkeypatch, name, title):
    monkeypatch.chdir(root)
    words = [f"--set=dedup.hash={name}", f"--holdout={root}/held", "--set=dedup.groups=components"]
    out, said = run(root, name, *words)
    images, duplicates = tables(out)
    assert "grey" not in next(iter(images.values()))
    assert (images["000"]["phash"] is not None) == (name == "phash")
    by_hash = {key for key, row in duplicates.items() if row["method"] == name}
    small = {f"{n:03d}" for n in range(20)}
    same = {f"{n:03d}same" for n in range(10)}
    assert len(by_hash & small) >= 10
    assert {key for key in same if key[:3] in by_hash} == by_hash & same
    assert by_hash <= small | same
    for key in by_hash - {"003", "003same"}:
        assert images[key]["decision"] == "duplicate"
        assert images[key]["reason"] == f"the same {title} as 00000/{key[:3]}large"
        assert images[key]["duplicate_of"] == f"00000/{key[:3]}large"
        assert images[key]["duplicate_similarity"] == duplicates[key]["similarity"] < 1
    assert not {"flat0", "flat9"} & by_hash
    if "003" in by_hash:
        assert {images[key]["decision"] for key in ("003", "003same", "003large")} == {"holdout"}
    told = json.loads((out / "reports" / "funnel.json").read_text())
    assert told["dedup_hash"] == {
        "method": name,
        "hashed": PICTURES + 20,
        "covered": len(by_hash & small),
    }
    counted = f"{len(by_hash & small)} copies of the same {title}"
    assert counted in said
    assert f"of {PICTURES + 20} that have one" in said
    assert counted in (out / "datasheet.md").read_text()
    key = min(by_hash)
    said = CliRunner().invoke(main, ["explain", str(out), f"00000/{key}"]).output
    assert f"the same {title} as 00000/{key}large (cosine" in said


def test_a_pool_too_small_for_components_is_told(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setattr(hashes, "FEWEST", 1_000)
    out, _ = run(root, "few", "--set=dedup.hash=pca", "--set=dedup.seed=1")
    told = json.loads((out / "reports" / "funnel.json").read_text())
    assert told["dedup_hash"] == {"method": "pca", "hashed": 0, "covered": 0}
    assert any("no picture has a hash" in problem for problem in told["problems"])


def test_without_the_package_a_hash_is_one_line(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setitem(sys.modules, "imagehash", None)
    _, said = run(root, "never", "--set=dedup.hash=phash", status=2)
    assert said.count("\n") == 1
    assert "uv pip install -c constraints.txt -e '.[phash]'" in said


def test_an_update_keeps_what_it_holds_whatever_has_its_hash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = {f"{n}.png": encoded(detailed(n, 64), "PNG") for n in range(12)}
    write_tar(tmp_path / "crawl" / "00001.tar", old)
    (tmp_path / "seed").mkdir()
    (tmp_path / "seed" / "0.jpg").write_bytes(encoded(picture(1_000)))
    (tmp_path / "pipelines.yaml").write_text(CONFIG.replace("ROOT", str(tmp_path)))
    out, _ = run(tmp_path, "out", "--set=dedup.hash=phash", "--set=embed.once=hash")
    new = {f"{n}large.png": encoded(detailed(n, 192), "PNG") for n in (1, 2, 3, 4, 40)}
    write_tar(tmp_path / "crawl" / "00000.tar", new)
    words = ["update", str(out), f"--work={tmp_path}/work", "--executor=inline"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    images, duplicates = tables(out)
    assert all(images[str(n)]["decision"] == "kept" for n in range(12))
    assert images["40large"]["decision"] == "kept"
    covered = [n for n in (1, 2, 3, 4) if images[str(n)]["phash"] == images[f"{n}large"]["phash"]]
    assert covered
    for n in covered:
        assert images[f"{n}large"]["duplicate_of"] == f"00001/{n}"
        assert duplicates[f"{n}large"]["method"] == "phash"
        assert duplicates[str(n)]["representative"]
    lent = {key for key, row in images.items() if row["lent"]}
    assert lent == {f"{n}large" for n in covered}  # what is held has its own vector
