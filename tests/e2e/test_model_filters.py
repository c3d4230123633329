"""Filters by models in whole runs: what they exclude, what is computed for them, and no more."""

import json
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from curated_site import Site, result, units
from drawn_crawl import encoded, wave, write_tar
from model_folders import make_open_clip_folder, make_timm_folder
from PIL import Image

from curate.catalogue.collection import Collection
from curate.cli import main
from curate.embedding.decoder import Decoder
from curate.embedding.new_vectors import Batches
from shared.embedders.embedder import load
from shared.embedders.settings import EmbedderSettings

CONFIG = """
datasets:
  crawl: {path: ROOT/crawl}
  seed: {path: ROOT/seed}
embedders:
  clip: {kind: open_clip, model: "local-dir:ROOT/clip", device: cpu, precision: float32}
  labels:
    {kind: timm, task: classify, model: "local-dir:ROOT/labels", device: cpu, precision: float32}
pipelines:
  default:
    crawl: crawl
    seed: seed
    dedup: {embedder: descriptor, threshold: 0.999}
    retrieve: {embedder: clip, threshold: -1}
    calibrate: {originals: 8}
    report: {pictures: false}
"""
PROMPTS = "prompts: {for: [a photo with a watermark], against: [a clean photo]}"
DARK, BRIGHT = (f"00000/{name}" for name in ("dark", "bright"))


@dataclass
class Counts:
    """How many images were decoded, and how many were handed to a network, of datasets."""

    decoded: int = 0
    embedded: int = 0


@pytest.fixture
def counts(monkeypatch):
    found, decode, add = Counts(), Decoder.decode, Batches.add

    def count_decode(*args):
        found.decoded += 1
        return decode(*args)

    def count_add(*args):
        found.embedded += 1
        return add(*args)

    monkeypatch.setattr(Decoder, "decode", count_decode)
    monkeypatch.setattr(Batches, "add", count_add)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name in ("clip", "labels", "crawl", "seed"):
        (root / name).mkdir()
    make_open_clip_folder(root / "clip", vocabulary=49_408)
    make_timm_folder(root / "labels", labels=("sfw", "drawing", "nsfw"))
    members = {f"wave{number}.jpg": encoded(wave(number)) for number in range(8)}
    noise = np.random.default_rng(0).integers(0, 40, (64, 64, 3)).astype(np.uint8)
    members |= {"dark.png": encoded(Image.fromarray(noise), "PNG")}
    members |= {"bright.png": encoded(Image.fromarray(noise + 200), "PNG")}
    members |= {
        "broken.jpg": encoded(wave(20))[:-300],
        "small.jpg": encoded(wave(21).resize((20, 20))),
    }
    write_tar(root / "crawl" / "00000.tar", members)
    write_tar(root / "seed" / "00000.tar", {"a.jpg": encoded(wave(30))})
    (root / "pipelines.yaml").write_text(CONFIG.replace("ROOT", str(root)))
    site = Site(root, root, root / "work")
    site.run(out="plain")
    return root


@pytest.fixture
def site(root):
    return Site(root, root, root / "work")


def run(site, filters, out, status=0, *words):
    return site.run(f"--set=filters=[{filters}]", *words, out=out, status=status)


def images(site, out):
    table = pq.read_table(site.root / out / "reports" / "images.parquet").to_pylist()
    return {row["key"]: row for row in table}


def scores(site, out, name):
    return {key: dict(row["scores"])[name] for key, row in images(site, out).items()}


def vectors(site, out, dim):
    """Return the stored vectors of the crawl, float64 at length 1, by key."""
    crawls = [Collection(path) for path in sorted((site.work / "catalogue").glob("*/all"))]
    crawl = next(each for each in crawls if each.dim == dim and len(each) == 12)
    found = crawl.vectors(np.arange(len(crawl))).astype(np.float64)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
    return dict(zip(crawl.keys(np.arange(len(crawl))), found, strict=True))


def test_a_head_and_prompts_read_stored_vectors_and_embed_nothing(site, counts):
    by_clip = vectors(site, "plain", 24)
    assert images(site, "plain")[DARK]["scores"] is None
    weight = by_clip[DARK] - by_clip[BRIGHT]
    np.savez(site.root / "dark.npz", weight=weight, bias=0.25)
    expected = {key: vector @ weight + 0.25 for key, vector in by_clip.items()}
    before = units(site, "vectors") | units(site, "facts")
    head = f"name: darkness, head: {{file: {site.root}/dark.npz}}, decision: low_quality"
    run(
        site, f"{{{head}, max: {expected[DARK] - 1e-3}}}, {{name: mark, {PROMPTS}, max: 1}}", "head"
    )
    assert units(site, "vectors") | units(site, "facts") == before
    assert counts == Counts()
    found = scores(site, "head", "darkness")
    assert found.pop("00000/broken") is None
    assert found == pytest.approx({key: expected[key] for key in found}, abs=1e-6)
    told = images(site, "head")
    assert max(found, key=found.get) == DARK
    assert told[DARK]["decision"] == "low_quality"
    assert told[DARK]["reason"] == (f"darkness {found[DARK]:g} is above {expected[DARK] - 1e-3:g}")
    assert told[BRIGHT]["decision"] == "kept"
    assert told["00000/broken"]["decision"] == "corrupt"
    marks = scores(site, "head", "mark")
    assert all(0 < mark < 1 for key, mark in marks.items() if key != "00000/broken")
    made = units(site, "predict") | units(site, "head")
    run(site, f"{{{head}, min: 0}}, {{name: mark, {PROMPTS}, max: 0.9}}", "head-again")
    assert units(site, "predict") | units(site, "head") == made
    assert counts == Counts()


def test_a_classifier_sees_each_picture_once_and_sums_its_labels(site, counts):
    before = units(site, "vectors") | units(site, "facts")
    classifier = "name: safe, classifier: {model: labels, labels: [sfw, 1]}"
    run(site, f"{{{classifier}, min: 0}}", "open")
    assert len(units(site, "vectors") | units(site, "facts")) == len(before) + 1
    assert before.items() <= units(site, "vectors").items() | units(site, "facts").items()
    assert counts.decoded == 12  # the broken one too
    assert counts.embedded == 11
    model = f"local-dir:{site.root / 'labels'}"
    settings = {"kind": "timm", "task": "classify", "model": model}
    network = load(EmbedderSettings(**settings, device="cpu", precision="float32"), 1)
    [dark] = network.embed([network.prepare(Image.open(dark_file(site)))])
    found = scores(site, "open", "safe")
    assert found[DARK] == pytest.approx(dark[:2].sum(), abs=1e-3)
    limit = sorted(value for value in found.values() if value is not None)[4]
    run(site, f"{{{classifier}, min: {limit}}}", "strict")
    assert counts.decoded == 12
    told = images(site, "strict")
    unsafe = {key for key, row in told.items() if row["decision"] == "unsafe"}
    assert unsafe == {key for key, value in found.items() if value is not None and value < limit}
    assert len(unsafe) == 4
    assert all(told[key]["reason"].startswith("safe 0.") for key in unsafe)
    labels_only = (
        f"{{name: safe, classifier: {{model: {site.root}/labels, labels: [sfw, 1]}}, min: 0}}"
    )
    run(site, labels_only, "folder")
    assert scores(site, "folder", "safe") == pytest.approx(found, abs=0.02)  # in bfloat16, perhaps


def dark_file(site):
    import io
    import tarfile

    with tarfile.open(site.root / "crawl" / "00000.tar") as tar:
        return io.BytesIO(tar.extractfile("dark.png").read())


def test_unsafe_comes_before_low_quality_and_that_in_the_order_of_quality(site):
    lower = f"{{name: mark, {PROMPTS}, max: 0, decision: low_quality}}"
    upper = "{name: safe, classifier: {model: labels, labels: [0]}, max: 0}"
    run(site, lower, "low")
    low = images(site, "low")
    assert low["00000/small"]["reason"].startswith("shorter side 20 px")
    assert low[DARK]["reason"].startswith("mark 0.")
    assert {row["decision"] for row in low.values()} == {"low_quality", "corrupt"}
    run(site, f"{lower}, {upper}", "both")
    both = images(site, "both")
    assert {row["decision"] for row in both.values()} == {"unsafe", "corrupt"}
    assert both["00000/small"]["reason"].startswith("safe 0.")


def test_gc_removes_the_scores_that_no_result_needs(site):
    filters = f"{{name: mark, {PROMPTS}, max: 0.75}}"
    run(site, filters, "marked")

    def unneeded(*kept):
        words = [str(site.root / out) for out in kept]
        said = CliRunner().invoke(main, ["gc", *words, "--work", str(site.work), "--dry-run"])
        assert said.exit_code == 0, said.output
        return {line.split("/")[0] for line in said.output.splitlines()[:-1]}

    assert {"head", "predict"} <= unneeded("plain")
    used = json.loads((site.root / "marked" / "used.json").read_text())["used"]
    assert {"head", "predict"} <= {place.split("/")[0] for place in used}


def test_explain_says_the_scores_of_an_image(site):
    run(site, f"{{name: mark, {PROMPTS}, max: 0.75}}", "marked")
    said = CliRunner().invoke(main, ["explain", str(site.root / "marked"), DARK]).output
    assert f"scores   mark {scores(site, 'marked', 'mark')[DARK]:.4g}\n" in said


def test_filters_from_the_start_give_what_filters_later_give(site, counts):
    filters = f"{{name: mark, {PROMPTS}, max: 0.5}}, " + (
        "{name: safe, classifier: {model: labels, labels: [2]}, max: 0.4}"
    )
    measured = "--set=quality.min_entropy=0.1"
    run(site, filters, "later", 0, measured)
    clean, before = Site(site.root, site.data, site.root / "clean-work"), counts.decoded
    run(clean, filters, "clean", 0, measured)
    assert (
        counts.decoded - before == 12 + 1
    )  # each image of crawl and seed once, for all that see it
    assert result(site.root / "clean") == result(site.root / "later")
    funnel = json.loads((site.root / "clean/reports/funnel.json").read_text())
    assert sum(funnel["decisions"].values()) == funnel["images"] == 12


WRONG = {
    "captions for an embedder without a text tower": (
        "{name: a, prompts: {for: [x], against: [y], embedder: dedup}, max: 1}",
        ["filters.a", "descriptor", "kind open_clip"],
    ),
    "an embedder that nobody declares": (
        "{name: a, classifier: {model: label, labels: [0]}, max: 1}",
        ["filters.a", "no embedder 'label'", "did you mean 'labels'?"],
    ),
    "vectors for classes": (
        "{name: a, classifier: {model: clip, labels: [0]}, max: 1}",
        ["filters.a", "clip gives no classes", "task: classify"],
    ),
    "classes for vectors": (
        "{name: a, head: {file: x.npz, embedder: labels}, max: 1}",
        ["filters.a", "labels classifies"],
    ),
    "a head that is not there": (
        "{name: a, head: {file: none.npz}, max: 1}",
        ["filters.a.head.file: none.npz"],
    ),
    "a head of another length": (
        "{name: a, head: {file: ROOT/short.npz}, max: 1}",
        ["short.npz", "3 dimensions", "have 24"],
    ),
    "a class that it does not have": (
        "{name: a, classifier: {model: labels, labels: [sfv]}, max: 1}",
        ["filters.a.classifier", "no class 'sfv'", "did you mean 'sfw'?"],
    ),
    "one name twice": (
        f"{{name: a, {PROMPTS}, max: 1}}, {{name: a, {PROMPTS}, min: 0}}",
        ["one name"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_filter_is_one_line_before_anything_is_embedded(site, tmp_path, case):
    filters, told = WRONG[case]
    np.savez(site.root / "short.npz", weight=np.ones(3))
    fresh = Site(site.root, site.data, tmp_path / "work")
    said = run(fresh, filters.replace("ROOT", str(site.root)), "wrong", 2)
    line = said.strip().splitlines()[-1]
    for text in told:
        assert text in line, said
    assert not (fresh.work / "vectors").exists()


def test_a_classifier_is_no_embedder(site):
    said = site.run("--set=retrieve.embedder=labels", out="wrong", status=2)
    assert "embedder labels classifies, and retrieve needs vectors" in said
