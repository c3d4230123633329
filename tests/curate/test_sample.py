import csv
import io
import itertools
import json
import shutil
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from curate.sample import edits as sample_edits
from curate.sample.make import make_sample
from curate.sample.photographs import OTHER_SUBJECTS, SEED_SUBJECTS, TEXTURES, crops, overlap
from shared.errors import LvdError

IMAGES = 150


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("sample") / "a"
    return out, make_sample(out, images=IMAGES)


@pytest.fixture(scope="module")
def members(made) -> dict[tuple[str, str], tuple[str, bytes, dict]]:
    """(part, stem) -> extension, bytes, record, for every member of every tar."""
    found: dict = defaultdict(dict)
    for path in sorted((made[0] / "crawl").iterdir()):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                stem, _, extension = member.name.partition(".")
                data = tar.extractfile(member).read()
                assert extension not in found[path.stem, stem]
                found[path.stem, stem][extension] = data
    result = {}
    for place, files in found.items():
        record = json.loads(files.pop("json"))
        ((extension, data),) = files.items()
        result[place] = extension, data, record
    return result


@pytest.fixture(scope="module")
def truth(made) -> list[dict[str, str]]:
    with (made[0] / "truth.csv").open() as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def upright(data: bytes) -> np.ndarray:
    """An independent reading: upright, 16 bits scaled, alpha over white, float RGB."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I"):
        return np.repeat(np.asarray(image, dtype=float)[..., None] / 257, 3, axis=2)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"), dtype=float)


def test_the_same_arguments_give_the_same_bytes_in_another_process(made, tmp_path):
    out = tmp_path / "deep" / "b"
    call = f"import sys, pathlib; sys.path[:0] = {sys.path!r}; from curate.sample.make import make_sample; "
    call += f"make_sample(pathlib.Path({str(out)!r}), images={IMAGES})"
    subprocess.run([sys.executable, "-c", call], check=True, env={"PYTHONHASHSEED": "7"})
    assert content(out) == content(made[0])


def test_another_seed_gives_other_pictures_and_replaces_the_sample(made, tmp_path):
    out = shutil.copytree(made[0], tmp_path / "a", copy_function=shutil.copy2)
    before = content(out)
    second = make_sample(out, seed=1, images=IMAGES)
    assert set(second["kinds"]) == set(made[1]["kinds"])
    assert second["images"] == IMAGES
    after = content(out)
    assert all(before[f"crawl/0000{i}.tar"] != after[f"crawl/0000{i}.tar"] for i in range(6))
    assert {path.name for path in tmp_path.iterdir()} == {"a", ".lock"}


def test_a_complete_sample_is_left_as_it_is_and_a_damaged_one_made_again(made):
    out, facts = made
    tar = out / "crawl" / "00003.tar"
    before = tar.stat()
    assert facts["built"]
    again = make_sample(out, images=IMAGES)
    assert again == {**facts, "built": False}
    assert tar.stat().st_mtime_ns == before.st_mtime_ns
    assert tar.stat().st_ino == before.st_ino
    whole = content(out)
    tar.write_bytes(b"")
    (out.parent / f".{out.name}.partial").mkdir()  # what a killed run leaves
    assert make_sample(out, images=IMAGES) == facts
    assert content(out) == whole
    assert {path.name for path in out.parent.iterdir()} == {out.name, ".lock"}


def test_a_folder_with_other_files_and_impossible_sizes_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(LvdError, match="no built-in sample: name another folder"):
        make_sample(tmp_path / "mine", images=IMAGES)
    assert content(tmp_path / "mine") == {"thesis.txt": b"years of work"}
    with pytest.raises(LvdError, match="cannot be written"):
        make_sample(tmp_path / "mine" / "thesis.txt" / "sample", images=IMAGES)
    with pytest.raises(LvdError, match="is a file"):
        make_sample(tmp_path / "mine" / "thesis.txt", images=IMAGES)
    with pytest.raises(LvdError, match="at least 100"):
        make_sample(tmp_path / "small", images=99)
    with pytest.raises(LvdError, match="ask for fewer images"):
        make_sample(tmp_path / "large", images=5000)


def test_every_truth_row_is_a_member_and_every_member_has_a_row(made, members, truth):
    assert [(row["part"], row["member"]) for row in truth] == list(members)
    assert len(members) == IMAGES == made[1]["images"]
    assert len({stem for _, stem in members}) == IMAGES
    assert Counter(row["kind"] for row in truth) == made[1]["kinds"]
    assert {part for part, _ in members} == {f"0000{i}" for i in range(6)}
    assert len({record["url"] for _, _, record in members.values()}) == IMAGES
    assert all(record["url"].startswith("sample:") for _, _, record in members.values())
    assert {"jpg", "png", "webp", "gif"} <= {extension for extension, _, _ in members.values()}


def test_all_kinds_copies_encodings_and_faults_are_there(made, truth):
    kinds = made[1]["kinds"]
    assert set(kinds) == {
        *("photograph", "object", "texture", "chart", "screenshot", "document"),
        *("placeholder", "blank", "tiny", "odd", "corrupt"),
    }
    assert min(kinds[kind] for kind in ("photograph", "object", "chart", "placeholder")) > 5
    transforms = Counter(row["transform"] for row in truth)
    assert set(transforms) >= {*sample_edits.COPIES, *sample_edits.ODD, *sample_edits.BROKEN}


def small(pixels: np.ndarray) -> np.ndarray:
    size = (16, 16)
    image = Image.fromarray(np.rint(pixels).astype(np.uint8))
    return np.asarray(image.resize(size, Image.Resampling.BOX), dtype=float)


def test_copies_show_their_original(members, truth):
    places = {stem: (part, stem) for part, stem in members}
    kinds = {row["member"]: row["kind"] for row in truth}
    copies = [row for row in truth if row["copy_of"]]
    assert len(copies) > 40
    for row in copies:
        assert kinds[row["copy_of"]] == row["kind"] or row["kind"] == "odd"
        data = members[row["part"], row["member"]][1]
        original = members[places[row["copy_of"]]][1]
        if row["transform"] == "exact":
            assert data == original
            continue
        one, other = upright(data), upright(original)
        if row["transform"] == "crop92":
            top, left = (round(0.04 * side) for side in other.shape[:2])
            other = other[top:-top, left:-left]
        elif row["transform"] in ("gray", "bit16"):
            other = np.repeat((other @ [0.299, 0.587, 0.114])[..., None], 3, axis=2)
        elif row["transform"] == "bright":
            other = np.minimum(other * 1.2, 255)
        if row["transform"] != "half":
            assert one.shape == other.shape, row
        assert np.abs(small(one) - small(other)).mean() < 5, row


def test_whole_files_decode_and_broken_ones_do_not(members, truth):
    for row in truth:
        extension, data, _ = members[row["part"], row["member"]]
        if row["kind"] == "corrupt":
            with pytest.raises((OSError, SyntaxError, Image.DecompressionBombError)):
                Image.open(io.BytesIO(data)).load()
        else:
            image = Image.open(io.BytesIO(data))
            image.load()
            lies = row["transform"] == "png_named_jpg"
            named = {"jpg": "JPEG", "tif": "TIFF"}.get(extension, extension.upper())
            assert image.format == ("PNG" if lies else named)
            assert (
                row["kind"] in ("tiny", "blank")
                or min(image.size) >= 64
                or (row["transform"] == "half" and min(image.size) >= 48)
            )


def test_the_seed_shows_the_same_subjects_but_no_crop_of_the_crawl(made):
    seeds = sorted((made[0] / "seed").iterdir())
    assert len(seeds) == made[1]["seed_images"]
    assert {path.stem.partition("-")[0] for path in seeds} == set(SEED_SUBJECTS)
    assert all(Image.open(path).format == "JPEG" for path in seeds)
    assert not {p.read_bytes() for p in seeds} & set(content(made[0] / "crawl").values())


@pytest.mark.parametrize(
    ("subjects", "count"), [(SEED_SUBJECTS, 184), (OTHER_SUBJECTS, 70), (TEXTURES, 40)]
)
def test_crops_of_one_photograph_overlap_little(subjects, count):
    found = crops(subjects, count, "0")
    assert len(found) == count
    boxes = defaultdict(list)
    for crop in found:
        assert crop.number == len(boxes[crop.subject])
        boxes[crop.subject].append(crop.box)
    assert set(boxes) == set(subjects)
    for mine in boxes.values():
        assert max(overlap(a, b) for a, b in itertools.combinations(mine, 2)) <= 0.3


def test_overlap_is_intersection_over_union():
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 2, 2), (2, 0, 3, 2)) == 0
