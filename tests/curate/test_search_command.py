"""Searching a finished run: by pictures, words and keys, against all cosines in float64."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from model_folders import make_open_clip_folder
from pictures import encoded, picture, write_tar

from curate import embed
from curate.cli import main
from curate.neighbours import in_dataset
from shared.datasets.outputs import WORK_MARKER
from shared.embedders.settings import EmbedderSettings
from train.visualise import album
from train.visualise.command import visualise
from train.visualise.stored import stored_vectors

CONFIG = """
datasets:
  crawl: {path: ROOT/crawl}
  seed: {path: ROOT/seed}
embedders:
  clip: {kind: open_clip, model: "local-dir:ROOT/clip", device: cpu, precision: float32}
pipelines:
  default:
    crawl: crawl
    seed: seed
    dedup: {embedder: descriptor, threshold: 0.95}
    retrieve: {embedder: clip, strategy: knn, knn: {neighbours: 3}}
    calibrate: {originals: 8}
    export: {embeddings: true, shard_size: 2}
    report: {pictures: false}
"""
TEXTS = ["a photo of a dog", "noise"]


class Searched:
    """A run whose embedders for copies and for meaning differ, and all its cosines."""

    def __init__(self, root):
        self.root, self.out, self.work = root, root / "out", root / "work"
        (root / "clip").mkdir()
        make_open_clip_folder(root / "clip", vocabulary=49_408)
        crawl = {f"{number:02d}.jpg": encoded(picture(number)) for number in range(14)}
        crawl |= {"03copy.png": encoded(picture(3), "PNG"), "same.jpg": crawl["05.jpg"]}
        for part, names in enumerate((sorted(crawl)[:9], sorted(crawl)[9:])):
            members = {name: crawl[name] for name in names} | {"broken.jpg": b"\xff\xd8\xff"}
            write_tar(root / "crawl" / f"{part:05d}.tar", members)
        (root / "seed").mkdir()
        for number in (20, 21):
            (root / "seed" / f"{number}.jpg").write_bytes(encoded(picture(number)))
        (root / "pipelines.yaml").write_text(CONFIG.replace("ROOT", str(root)))
        status, said = lvd_curate(
            *("run", f"--config={root / 'pipelines.yaml'}", f"--out={self.out}"),
            *(f"--work={self.work}", "--executor=inline"),
        )
        assert status == 0, said
        self.rows = {
            row["key"]: row
            for row in pq.read_table(self.out / "reports" / "images.parquet").to_pylist()
        }
        clip = {"kind": "open_clip", "model": f"local-dir:{root / 'clip'}"}
        self.clip = EmbedderSettings(**clip, device="cpu", precision="float32")
        self.by = {
            "meaning": embed(root / "crawl", self.clip),
            "copies": embed(root / "crawl", "descriptor"),
        }

    def nearest(self, by, vector, k, decisions=None):
        """Return keys and cosines by brute force: falling, ties by key."""
        known, vector = self.by[by], np.asarray(vector, np.float64)
        units = [np.asarray(each, np.float64) for each in known.vectors]
        found = []
        for key, stored in zip(known.keys, units, strict=True):
            if stored.any() and (decisions is None or self.rows[key]["decision"] in decisions):
                cosine = stored @ vector / np.linalg.norm(stored) / np.linalg.norm(vector)
                found.append((-np.float32(cosine), key))
        return [(key, -cosine) for cosine, key in sorted(found)[:k]]


def lvd_curate(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    root = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield Searched(root)


@pytest.fixture
def ask(searched, tmp_path):
    """Search, and return the table of what is found."""

    def ask(*words):
        table = tmp_path / "found.parquet"
        status, said = lvd_curate(
            "search", searched.out, *words, f"--work={searched.work}", f"--parquet={table}"
        )
        assert status == 0, said
        return pq.read_table(table).to_pylist(), said

    return ask


def same(rows, expected):
    """Hold found rows against keys and cosines."""
    assert [row["rank"] for row in rows] == list(range(len(expected)))
    assert [row["key"] for row in rows] == [key for key, _ in expected]
    cosines = [cosine for _, cosine in expected]
    np.testing.assert_allclose([row["similarity"] for row in rows], cosines, atol=1e-5)


@pytest.mark.parametrize("by", ["meaning", "copies"])
def test_a_picture_finds_what_brute_force_finds_and_what_became_of_it(searched, ask, by):
    queries = [searched.root / "seed" / f"{number}.jpg" for number in (20, 21)]
    own = embed(searched.root / "seed", searched.clip if by == "meaning" else "descriptor")
    rows, said = ask(*queries, f"--by={by}", "--top=5")
    for query, vector in zip(queries, own.vectors, strict=True):
        mine = [row for row in rows if row["query"] == str(query)]
        same(mine, searched.nearest(by, vector, 5))
    for row in rows:
        told = searched.rows[row["key"]]
        assert {name: told[name] for name in row if name in told} == {
            name: row[name] for name in row if name in told
        }
        assert f"{row['decision']}" in said


def test_words_find_what_brute_force_finds(searched, ask):
    import open_clip
    import torch

    model = open_clip.create_model(searched.clip.model).eval()
    tokens = open_clip.get_tokenizer(searched.clip.model)(TEXTS)
    with torch.inference_mode():
        vectors = model.encode_text(tokens, normalize=True).numpy().astype(np.float16)
    rows, _ = ask(*(f"--text={text}" for text in TEXTS), "--top=4")
    for text, vector in zip(TEXTS, vectors, strict=True):
        mine = [row for row in rows if row["query"] == text]
        same(mine, searched.nearest("meaning", vector, 4))


def test_a_key_finds_itself_and_its_copies_first_and_embeds_nothing(searched, ask, monkeypatch):
    monkeypatch.setattr("curate.search.search.Forwards", None)
    rows, _ = ask("--key=00000/03", "--by=copies", "--top=3")
    own = searched.by["copies"]
    vector = own.vectors[own.keys.index("00000/03")]
    same(rows, searched.nearest("copies", vector, 3))
    assert [row["key"] for row in rows[:2]] == ["00000/03", "00000/03copy"]


def test_a_copy_is_told_its_nearest_seeds_by_its_own_vector(searched):
    words = ("explain", searched.out, "03.jpg", "--json")
    status, said = lvd_curate(*words, f"--work={searched.work}")
    assert status == 0, said
    told = json.loads(said)
    assert told["decision"] == "duplicate"
    own = searched.by["meaning"]
    vector = own.vectors[own.keys.index("00000/03")].astype(np.float64)
    seeds = embed(searched.root / "seed", searched.clip)
    units = seeds.vectors / np.linalg.norm(seeds.vectors.astype(np.float64), axis=1)[:, None]
    cosines = units @ vector / np.linalg.norm(vector)
    assert [row["seed_key"] for row in told["seeds"]] == [
        seeds.keys[n] for n in np.argsort(-cosines)
    ]
    found = [row["similarity"] for row in told["seeds"]]
    np.testing.assert_allclose(found, np.sort(cosines)[::-1], atol=1e-5)
    status, said = lvd_curate(*words, f"--work={searched.root / 'seed'}")
    assert status == 0
    assert "the nearest seeds of a copy are not told: --work" in said


def test_decisions_and_blocks_change_no_order(searched, ask, monkeypatch):
    decided = ("kept", "irrelevant")
    words = [f"--decision={each}" for each in decided]
    own = searched.by["meaning"]
    vector = own.vectors[own.keys.index("00001/08")]
    expected = searched.nearest("meaning", vector, 50, decided)
    assert 2 < len(expected) < len(searched.rows) - 2
    same(ask("--key=00001/08", "--top=50", *words)[0], expected)
    monkeypatch.setattr(in_dataset, "TOGETHER", 3)
    same(ask("--key=00001/08", "--top=50", *words)[0], expected)
    assert ask("--key=00001/08", "--decision=holdout")[1].endswith("no image was found\n")


def test_the_page_shows_the_pictures_and_loads_nothing(searched, tmp_path):
    hostile = tmp_path / "<b>q&.jpg"
    shutil.copy(searched.root / "seed" / "20.jpg", hostile)
    words = ("search", searched.out, hostile, f"--work={searched.work}", "--top=4")
    pages = []
    for name in ("one.html", "two.html"):
        status, said = lvd_curate(*words, f"--page={tmp_path / name}")
        assert status == 0, said
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    text = pages[0].decode()
    assert text.count("<img ") == 5
    assert "<b>" not in text.replace("<div><b>", "")
    assert "&lt;b&gt;q&amp;.jpg" in text
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.parametrize("place", ["out", "out/shards"])
def test_visualise_takes_its_neighbours_from_the_vectors_that_are_stored(
    searched, tmp_path, monkeypatch, place
):
    shown = {}

    def keep(name, gallery, pictures, found, squares):
        shown.update(found)
        assert {key for best in found.values() for key, _ in best} == squares.keys()
        return neighbour_figure(name, gallery, pictures, found, squares)

    neighbour_figure = album.neighbour_figure
    monkeypatch.setattr(album, "neighbour_figure", keep)
    monkeypatch.setattr(album, "bank", None)
    asked = [f"--model={searched.root / 'clip'}", f"--images={searched.root / 'seed'}"]
    asked += [f"--neighbours={searched.root / place}", f"--out={tmp_path / 'look'}"]
    result = CliRunner().invoke(visualise, [*asked, "--set=nearest=3"])
    assert result.exit_code == 0, result.output
    own = embed(searched.root / "seed", searched.clip)
    for key, vector in zip(own.keys, own.vectors, strict=True):
        expected = searched.nearest("meaning", vector, 3, ("kept",))
        prefix = "shards/" if place == "out" else ""
        keys = [prefix + _output(searched, key) for key, _ in expected]
        assert [key for key, _ in shown[key]] == keys
        cosines = [cosine for _, cosine in shown[key]]
        np.testing.assert_allclose(cosines, [cosine for _, cosine in expected], atol=2e-3)


def test_vectors_of_another_model_or_size_are_not_taken(searched):
    clip = str(searched.root / "clip")
    assert len(stored_vectors(clip, str(searched.out), None)) == 1
    for name, size in (("bundled", None), (f"{clip}+{clip}", None), (clip, 64)):
        assert stored_vectors(name, str(searched.out), size) == []
    assert stored_vectors(clip, str(searched.root / "crawl"), None) == []


def _output(searched, key):
    return "{output_shard}/{output_key}".format(**searched.rows[key])


WRONG = {
    "nothing": ((), "one of the three"),
    "two kinds": (("--text=a", "--key=b"), "one of the three"),
    "no picture": (("pipelines.yaml",), "IMAGE pipelines.yaml: not an image"),
    "no file": (("nowhere.jpg",), "IMAGE nowhere.jpg: No such file"),
    "a folder": (("seed",), "IMAGE seed: Is a directory"),
    "no key": (("--key=00000/99",), "--key '00000/99' is no key of the crawl"),
    "a broken image": (("--key=00000/broken",), "has no vector"),
    "empty words": (("--text= ",), "--text ' ' is empty"),
    "words for copies": (("--text=a", "--by=copies"), "--text is for --by meaning"),
    "another work": (("--key=00000/03", "--work=seed"), "--work "),
    "a page that is a folder": (("--key=00000/03", "--page=seed"), "--page seed is a folder"),
    "no decision": (("--key=00000/03", "--decision=kep"), "(did you mean 'kept'?)"),
    "a store": (("--key=00000/03", "--work=s3://bucket/work"), "name a folder of this machine"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line(searched, case):
    words, told = WRONG[case]
    status, said = lvd_curate("search", searched.out, f"--work={searched.work}", *words)
    assert (status, said.count("\n")) == (2, 1), said
    assert told in said


def test_what_the_work_folder_has_lost_is_said(searched, tmp_path):
    shutil.copytree(searched.work, tmp_path / "work", copy_function=shutil.copy2)
    words = ("search", searched.out, "--key=00000/03", f"--work={tmp_path / 'work'}")
    for vectors in (tmp_path / "work" / "vectors").rglob("*.npy"):
        vectors.unlink()
    status, said = lvd_curate(*words)
    assert (status, said.count("\n")) == (2, 1)
    assert "does not hold the vectors" in said
    shutil.rmtree(tmp_path / "work" / "catalogue")
    assert "does not hold the vectors" in lvd_curate(*words)[1]
    (tmp_path / "work" / WORK_MARKER).unlink()
    assert "is no work folder" in lvd_curate(*words)[1]


def test_another_model_of_the_same_name_is_refused(searched, tmp_path):
    shutil.copytree(searched.out, tmp_path / "out")
    path = tmp_path / "out" / "run.json"
    run = json.loads(path.read_text())
    run["embedders"]["retrieve"]["identity"]["model"] = {"open_clip_model.safetensors": "0"}
    path.write_text(json.dumps(run))
    words = (searched.root / "seed" / "20.jpg", f"--work={searched.work}")
    status, said = lvd_curate("search", tmp_path / "out", *words)
    assert status == 2
    assert "embedder clip is another model" in said
    status, said = lvd_curate("search", tmp_path / "out", "--text=a", f"--work={searched.work}")
    assert "embedder clip is another model" in said
