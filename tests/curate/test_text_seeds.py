"""A seed of captions: who is near them by the text tower, and what is refused of them."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from model_folders import make_open_clip_folder
from pictures import encoded, picture, write_tar

from curate.catalogue.collection import Collection
from curate.cli import main

TEXTS = ["a photo of a dog", "a red car", "noise"]
CONFIG = """
datasets:
  crawl: {path: ROOT/crawl}
  words: {text: [noise, a red car, a photo of a dog]}
embedders:
  clip: {kind: open_clip, model: "local-dir:ROOT/clip", device: cpu, precision: float32}
pipelines:
  default:
    crawl: crawl
    seed: words
    dedup: {embedder: descriptor, threshold: 0.95}
    retrieve: {embedder: clip, strategy: knn, knn: {neighbours: 2}}
    calibrate: {originals: 8, crawl_sample: 8}
    report: {pictures: false}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    (root / "clip").mkdir()
    make_open_clip_folder(root / "clip", vocabulary=49_408)
    members = {f"{number:02d}.jpg": encoded(picture(number)) for number in range(12)}
    write_tar(root / "crawl" / "00000.tar", members)
    (root / "pipelines.yaml").write_text(CONFIG.replace("ROOT", str(root)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


def lvd_curate(root, *words, out="out"):
    places = [f"--config={root / 'pipelines.yaml'}", f"--out={root / out}", f"--work={root}/work"]
    result = CliRunner().invoke(main, ["run", "--executor=inline", *places, *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_a_caption_retrieves_the_images_that_are_nearest_to_it(root):
    import open_clip
    import torch

    status, said = lvd_curate(root)
    assert status == 0, said
    model = open_clip.create_model(f"local-dir:{root / 'clip'}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{root / 'clip'}")(TEXTS)
    with torch.inference_mode():
        texts = model.encode_text(tokens, normalize=True).double().numpy()
    out = root / "out"
    run = json.loads((out / "run.json").read_text())
    images = pq.read_table(out / "reports" / "images.parquet").to_pylist()
    keys = [row["key"] for row in images if row["seed_similarity"] is not None]
    seed = Collection(root / "work" / "catalogue" / run["datasets"]["seed"]["content"] / "all")
    assert seed.keys(seed.order[:]) == TEXTS
    np.testing.assert_allclose(seed.vectors(seed.order[:]), texts, atol=1e-3)
    [folder] = (root / "work" / "choose").glob("*/candidates")
    numbers = np.load(folder / "numbers.npy")
    by_clip = next(
        found
        for path in (root / "work" / "catalogue").glob("*/all")
        if len(found := Collection(path)) == len(images) and found.dim == 24
    )
    assert by_clip.keys(numbers) == keys
    stored = by_clip.vectors(numbers).astype(np.float64)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    cosines = stored @ texts.T
    wanted = {keys[row] for column in cosines.T for row in np.argsort(-column)[:2]}
    assert {row["key"] for row in images if row["decision"] == "kept"} == wanted
    nearest = {row["key"]: row["nearest_seed"] for row in images}
    assert [nearest[key] for key in keys] == [TEXTS[place] for place in cosines.argmax(1)]
    listed = pq.read_table(out / "reports" / "retrieval.parquet").to_pylist()
    assert {row["seed_key"] for row in listed} == set(TEXTS)
    assert "nothing to do" in lvd_curate(root)[1]


WRONG = {
    "an embedder without a text tower": (
        ["--set=retrieve.embedder=descriptor"],
        ["seed words is text", "descriptor", "kind open_clip"],
    ),
    "no number as a threshold": (
        ["--set=retrieve.strategy=threshold"],
        ["seed words is text", "--set retrieve.threshold=..."],
    ),
    "to be included": (
        ["--set=seed=null", "--set=seeds.words.include=true"],
        ["seed words is text", "include"],
    ),
    "a crawl": (["--crawl=words"], ["dataset words is text", "a crawl"]),
    "a holdout": (["--holdout=words"], ["dataset words is text"]),
    "an empty caption": (["--set=datasets.words.text=[a, ' ']"], ["datasets.words", "empty"]),
    "a path too": (["--set=datasets.words.path=x"], ["datasets.words", "a path", "or text"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_done_with_captions_is_refused_in_one_line(root, case):
    words, told = WRONG[case]
    status, said = lvd_curate(root, *words, out="wrong")
    assert status == 2
    assert said.count("\n") == 1, said
    for text in told:
        assert text in said


def test_a_dry_run_counts_captions(root):
    status, said = lvd_curate(root, "--dry-run", out="dry")
    assert status == 0, said
    assert "seed       words: 3 captions" in said
