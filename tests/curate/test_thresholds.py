"""Where thresholds come from, and what is said when they are another embedder's."""

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from pictures import encoded, picture

from curate.calibration.stage import judged
from curate.calibration.stored import StoredThresholds, read_stored, store
from curate.calibration.thresholds import Threshold, known_threshold_of_seed, known_thresholds
from curate.cli import main
from curate.request import read_request
from shared.embedders.settings import EmbedderSettings
from shared.errors import LvdError

CONFIG = """
datasets:
  images: {path: ROOT/images}
embedders:
  declared: {kind: timm, model: resnet18, thresholds: {dedup: 0.61, retrieve: 0.31}}
  twin: {kind: timm, model: resnet18, thresholds: {dedup: 0.63}}
  other: {kind: timm, model: resnet34, thresholds: {dedup: 0.62}}
  folder: {kind: timm, model: "local-dir:ROOT/model"}
  half: {kind: timm, model: "local-dir:ROOT/model", thresholds: {dedup: 0.66}}
  nameless: {kind: timm, model: resnet50}
pipelines:
  default: {crawl: images, seed: images}
  numbers:
    crawl: images
    seed: images
    embedder: nameless
    dedup: {threshold: 0.55}
    retrieve: {threshold: 0.25}
    holdout: {threshold: 0.5}
  several:
    crawl: images
    seeds: {images: {threshold: 0.3}}
    embedder: nameless
  measured:
    crawl: images
    seed: images
    embedder: declared
    dedup: {threshold: auto}
"""

MODEL = {"pretrained_cfg": {"input_size": [3, 32, 32]}}
WEIGHTS = b"as good as weights: nothing here reads them"
STORED = {
    "dedup": 0.71,
    "retrieve": 0.38,
    "weights": hashlib.sha256(WEIGHTS).hexdigest(),
    "image_size": 32,
}


@pytest.fixture
def root(tmp_path) -> Path:
    """A configuration, its one image, and a model folder that has thresholds."""
    for name in ("images", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(encoded(picture(0)))
    (tmp_path / "model" / "config.json").write_text(json.dumps(MODEL))
    (tmp_path / "model" / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "model" / "thresholds.json").write_text(json.dumps(STORED))
    (tmp_path / "pipelines.yaml").write_text(CONFIG.replace("ROOT", str(tmp_path)))
    return tmp_path


def lvd_curate(root: Path, command: str, *words: str) -> tuple[int, list[str]]:
    """Return the status and the lines of a command."""
    given = [word.replace("ROOT", str(root)) for word in words]
    places = [f"--config={root / 'pipelines.yaml'}", f"--work={root / 'work'}"]
    result = CliRunner().invoke(main, [command, *places, *given])
    return result.exit_code, result.output.splitlines()


def warnings(root: Path, *words: str) -> list[str]:
    status, said = lvd_curate(root, "run", f"--out={root / 'out'}", "--dry-run", *words)
    assert status == 0, said
    return [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")]


def known(root: Path, pipeline: str, embedder: str | None, *overrides: str) -> dict[str, Threshold]:
    request = read_request(
        root / "pipelines.yaml",
        pipeline,
        embedder=embedder and embedder.replace("ROOT", str(root)),
        crawl=None,
        seeds=[],
        holdouts=[],
        overrides=overrides,
    )
    embedders = {name: each.settings for name, each in request.embedders.items()}
    [seed] = request.seeds
    of_seed = known_threshold_of_seed(seed.settings, embedders["retrieve"])
    return known_thresholds(request.settings, embedders) | (
        {"retrieve": of_seed} if of_seed else {}
    )


DECLARED = {"dedup": (0.61, "embedder"), "retrieve": (0.31, "embedder")}
IN_FOLDER = {"dedup": (0.71, "embedder")}


@pytest.mark.parametrize(
    ("pipeline", "embedder", "overrides", "expected"),
    [
        ("default", "nameless", [], {}),
        ("default", "declared", [], DECLARED),
        ("default", "folder", [], IN_FOLDER),
        ("default", "ROOT/model", [], IN_FOLDER),
        ("default", "half", [], {"dedup": (0.66, "embedder")}),
        ("default", "half", ["dedup.threshold=0.8"], {"dedup": (0.8, "pipeline")}),
        ("default", "folder", ["dedup.threshold=auto"], {}),
        ("measured", None, [], {"retrieve": (0.31, "embedder")}),
        (  # what is declared with the embedder is no floor of another strategy
            "default",
            "declared",
            ["retrieve.strategy=knn"],
            {"dedup": (0.61, "embedder"), "retrieve": (-1.0, "no floor")},
        ),
        (
            "default",
            "nameless",
            ["retrieve.strategy=cluster", "retrieve.threshold=0.2"],
            {"retrieve": (0.2, "pipeline")},
        ),
        (
            "numbers",
            "folder",
            [],
            {
                "dedup": (0.55, "pipeline"),
                "retrieve": (0.25, "pipeline"),
                "holdout": (0.5, "pipeline"),
            },
        ),
    ],
)
def test_a_number_of_the_pipeline_then_of_the_entry_then_of_the_folder_is_taken(
    root, pipeline, embedder, overrides, expected
):
    found = known(root, pipeline, embedder, *overrides)
    assert {name: (each.value, each.source) for name, each in found.items()} == expected


def test_nothing_is_kept_with_the_project_s_own(root):
    assert known(root, "default", None) == known(root, "default", "bundled") == {}


RIGHT = {
    "the pipeline's own embedder": ["--pipeline=numbers"],
    "its network under another name": [
        "--pipeline=numbers",
        "--embedder=declared",
        "--set=embedders.declared={kind: timm, model: resnet50}",
    ],
    "a number of this call": ["--pipeline=numbers", "--embedder=folder", *(
        f"--set={name}.threshold=0.9" for name in ("dedup", "retrieve", "holdout")
    )],
    "measured in the run": ["--pipeline=numbers", "--embedder=folder", *(
        f"--set={name}.threshold={value}"
        for name, value in (("dedup", "auto"), ("retrieve", "auto"), ("holdout", "null"))
    )],
    "a section of this call": ["--pipeline=numbers", "--embedder=folder",
        "--set=pipelines.numbers={crawl: images, seed: images, dedup: {threshold: 0.55}}",
    ],
    "the thresholds beside the model": ["--embedder=folder"],
    "the model folder itself": ["--embedder=ROOT/model"],
    "a folder that is not asked": [
        "--embedder=folder",
        "--set=embedders.folder.image_size=64",
        "--set=dedup.threshold=0.9",
        "--set=retrieve.threshold=auto",
    ],
    "the embedder's own number": ["--embedder=declared", "--set=dedup.threshold=0.61"],
    "the number of the same network": ["--embedder=declared", "--set=dedup.threshold=0.63"],
    "a number of the other kind": ["--embedder=other", "--set=dedup.threshold=0.31"],
    "another batch size": ["--embedder=declared", "--set=embedders.declared.batch_size=8"],
    "an overridden model and its number": [
        "--embedder=declared",
        "--set=embedders.declared.model=resnet50",
        "--set=embedders.declared.thresholds={dedup: 0.5, retrieve: 0.2}",
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_pairing_is_not_spoken_of(root, case):
    assert warnings(root, *RIGHT[case]) == []


WRONG = {
    "a number written for the pipeline's embedder": (
        ["--pipeline=numbers", "--embedder=folder"],
        [
            ["dedup.threshold 0.55", "nameless", "folder", "--set dedup.threshold=auto"],
            ["retrieve.threshold 0.25", "nameless", "folder", "--set retrieve.threshold=auto"],
            ["holdout.threshold 0.5", "nameless", "folder", "--set holdout.threshold=null"],
        ],
    ),
    "a number of one of several seeds": (
        ["--pipeline=several", "--embedder=folder"],
        [["seeds.images.threshold 0.3", "nameless", "folder", "--set seeds.images.threshold=auto"]],
    ),
    "another embedder by --set": (
        ["--pipeline=numbers", "--set=embedder=descriptor", "--set=embedders.descriptor.kind=descriptor",
         "--set=retrieve.threshold=auto", "--set=holdout.threshold=null"],
        [["dedup.threshold 0.55", "nameless", "descriptor"]],
    ),
    "another model of that embedder": (
        ["--pipeline=numbers", "--set=embedders.nameless.model=resnet101",
         "--set=retrieve.threshold=auto", "--set=holdout.threshold=null"],
        [["dedup.threshold 0.55", "nameless", "--set dedup.threshold=auto"]],
    ),
    "another size than was calibrated at": (
        ["--embedder=folder", "--set=embedders.folder.image_size=64"],
        [["thresholds.json", "32 px", "64 px", "embedder folder", "calibrate --save"]],
    ),
    "no weights": (
        ["--embedder=folder", "--set=embedders.folder.pretrained=false"],
        [["thresholds.json", "pretrained=false", "embedder folder"]],
    ),
    "an entry's numbers with another model": (
        ["--embedder=declared", "--set=embedders.declared.model=resnet50"],
        [
            ["embedders.declared.thresholds.dedup 0.61", "resnet18", "resnet50",
             "--set embedders.declared.thresholds.dedup=auto"],
            ["embedders.declared.thresholds.retrieve 0.31", "resnet18", "resnet50"],
        ],
    ),
    "an entry's number with another size": (
        ["--embedder=other", "--set=embedders.other.image_size=96"],
        [["embedders.other.thresholds.dedup 0.62", "resnet34", "96 px"]],
    ),
    "an entry's number without its weights": (
        ["--embedder=other", "--set=embedders.other.pretrained=false"],
        [["embedders.other.thresholds.dedup 0.62", "pretrained=False"]],
    ),
    "another entry's number": (
        ["--embedder=other", "--set=dedup.threshold=0.61"],
        [["dedup.threshold 0.61", "embedder declared", "other", "--set dedup.threshold=auto"]],
    ),
    "the number beside another entry's model": (
        ["--embedder=other", "--set=dedup.threshold=0.71"],
        [["dedup.threshold 0.71", "embedder folder", "other"]],
    ),
    "another's number for holdouts": (
        ["--embedder=other", "--set=holdout.threshold=0.61"],
        [["holdout.threshold 0.61", "embedder declared", "--set holdout.threshold=null"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_pairing_is_one_line_that_names_both_and_the_remedy(root, case):
    words, expected = WRONG[case]
    said = warnings(root, *words)
    assert len(said) == len(expected), said
    for line, parts in zip(said, expected, strict=True):
        for part in parts:
            assert part in line


def test_a_stored_number_with_another_s_vectors_is_warned_of(root):
    [line] = warnings(root, "--embedder=other", f"--set=dedup.threshold={STORED['dedup']}")
    assert "the one of embedder folder, not of other" in line


def test_thresholds_of_earlier_weights_are_warned_of_and_not_used(root):
    (root / "model" / "model.safetensors").write_bytes(b"a training has gone on")
    [line] = warnings(root, "--embedder=folder")
    assert "other weights" in line
    assert "calibrate --save" in line
    assert known(root, "default", "folder") == {}
    assert known(root, "default", "half") == {"dedup": Threshold(0.66, "embedder")}


def test_thresholds_of_another_size_are_not_used(root):
    assert known(root, "default", "folder", "embedders.folder.image_size=64") == {}


def test_stored_thresholds_of_a_model_that_tells_nothing_are_used_and_warned_of(root):
    (root / "model" / "thresholds.json").write_text(json.dumps({**STORED, "separates": False}))
    [line] = warnings(root, "--embedder=folder")
    assert "embedder folder finds few edited copies" in line
    stored = {**STORED, "separates": False, "dedup_recall": 0.536}
    (root / "model" / "thresholds.json").write_text(json.dumps(stored))
    [line] = warnings(root, "--embedder=folder")
    assert "finds 54% of edited copies" in line
    assert known(root, "default", "folder")["dedup"] == Threshold(0.71, "embedder")


MEASURED = {
    "threshold": 0.9,
    "at_least": 0.8,
    "drawn_threshold": 0.9,
    "drawn_at_least": 0.8,
    "precision_asked": 0.99,
    "size": 5_000,
    "recall": 0.6,
    "separates": True,
}


@pytest.mark.parametrize(
    ("known", "used", "said"),
    [
        (None, Threshold(0.9, "calibrated"), ""),
        (Threshold(0.85, "embedder"), Threshold(0.85, "embedder"), ""),
        (Threshold(0.95, "pipeline"), Threshold(0.95, "pipeline"), ""),
        (Threshold(0.7, "embedder"), Threshold(0.9, "calibrated"), "0.9 is used, as measured"),
        (Threshold(0.7, "pipeline"), Threshold(0.7, "pipeline"), "dedup.threshold=auto"),
    ],
)
def test_a_known_threshold_that_the_crawl_contradicts_is_replaced_or_warned_about(
    root, capsys, known, used, said
):
    assert judged(known, MEASURED, "one") == used
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(said)
    for line in lines:
        for part in (said, "0.7", "0.9", "precision 0.99 among 5,000 images"):
            assert part in line


def test_a_measured_threshold_that_finds_no_edited_copies_is_warned_about(capsys):
    judged(None, {**MEASURED, "separates": False, "recall": 0.02}, "one")
    assert "embedder one finds 2% of edited copies" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", '{"dedup": 2}', '{"dedup": NaN}', '{"dedup": "x"}'])
def test_a_broken_file_of_thresholds_is_one_line(root, content):
    (root / "model" / "thresholds.json").write_text(content)
    status, said = lvd_curate(root, "run", f"--out={root / 'out'}", "--embedder=folder")
    assert status == 2
    assert len(said) == 1
    assert str(root / "model" / "thresholds.json") in said[0]
    assert "calibrate --save" in said[0]


def test_what_is_stored_is_read_again_with_what_it_belongs_to(root):
    settings = EmbedderSettings(
        kind="timm", model=f"local-dir:{root / 'model'}", precision="bfloat16"
    )
    measured = {"threshold": 0.8, "separates": True, "recall": 0.93, "size": 900}
    store(root / "model" / "thresholds.json", settings, measured, "a crawl")
    stored = read_stored(settings)
    assert stored.problem == ""
    assert stored.values == StoredThresholds(
        dedup=0.8,
        weights=STORED["weights"],
        image_size=32,
        precision="bfloat16",
        crawl="a crawl",
        images=900,
        dedup_recall=0.93,
    )


@pytest.mark.parametrize(
    "words",
    [["--embedder=nameless"], ["--embedder=folder", "--set=embedders.folder.pretrained=false"]],
)
def test_thresholds_are_saved_beside_weights_only(root, words):
    status, said = lvd_curate(root, "calibrate", "--save", *words)
    assert status == 2
    assert len(said) == 1
    assert "--save" in said[0]
    assert "pipelines.yaml" in said[0]


def test_a_size_is_read_from_the_config_of_an_open_clip_folder(root):
    folder = root / "clip"
    folder.mkdir()
    (folder / "open_clip_model.safetensors").write_bytes(WEIGHTS)
    config = {"model_cfg": {"vision_cfg": {"image_size": 64}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "thresholds.json").write_text(json.dumps({**STORED, "image_size": 64}))
    settings = EmbedderSettings(kind="open_clip", model=f"local-dir:{folder}")
    assert read_stored(settings).problem == ""


def test_without_its_weights_a_model_folder_is_one_line(root):
    (root / "model" / "model.safetensors").unlink()
    with pytest.raises(LvdError, match=r"there is no model\.safetensors"):
        known(root, "default", "folder")
