"""Lists of PDQ hashes: images within some bits of one that is listed are unsafe."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_collection import files_of
from PIL import Image
from skimage import data

from curate import plan
from curate.filters import pdq
from curate.filters.lists import ListSettings, compile_lists
from curate.filters.looks import LOOKS
from shared.pictures.images import decode


def bits(digest: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(digest), np.uint8))


def test_fewest_bits_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    listed = rng.integers(0, 256, (300, 32)).astype(np.uint8)
    asked = np.concatenate([listed[:20] ^ np.uint8(1), rng.integers(0, 256, (50, 32), np.uint8)])
    apart = np.unpackbits(asked[:, None] ^ listed[None], axis=2).sum(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pdq, "PAIRS", 700)
        found = pdq.fewest_bits(asked.view(np.uint64), listed.view(np.uint64))
    assert found.tolist() == apart.min(1).tolist()
    none = pdq.fewest_bits(asked.view(np.uint64), np.empty((0, 4), np.uint64))
    assert set(none.tolist()) == {256}


def test_a_hash_is_listed_within_the_distance(tmp_path):
    (tmp_path / "bad.txt").write_text("\n".join(["00" * 32, "ff" * 32]))
    near = ["00" * 28 + "7fffffff", "00" * 28 + "ffffffff", "ff" * 31 + "fe", "0f" * 32]
    facts = pa.table({"pdq": [*near, None]})
    for distance, expected in ((None, [1, 0, 1, 0, 0]), (32, [1, 1, 1, 0, 0]), (0, [0] * 5)):
        settings = ListSettings(kind="pdq", path=str(tmp_path / "bad.txt"), distance=distance)
        [made] = compile_lists({"bad": settings}, tmp_path / "work", tmp_path / "scratch")
        assert [entry is not None for entry in made.find(facts)] == list(map(bool, expected))
    with pytest.raises(ValueError, match="distance is for the kind pdq"):
        ListSettings(kind="sha256", path="x", distance=3)


def test_without_the_package_a_list_is_one_line(small_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pdqhash", None)
    bad = small_run.root / "bad.txt"
    bad.write_text("00" * 32)
    words = f"--set=lists={{bad: {{kind: pdq, path: {bad}}}}}"
    status, said = small_run("run", words, f"--out={small_run.root / 'new'}")
    assert (status, len(said)) == (2, 1)
    assert "uv pip install -c constraints.txt -e '.[pdq]'" in said[0]
    place = [small_run.out, f"--list={bad}", f"--work={small_run.work}"]
    status, said = small_run("remove", *place, "--kind=pdq")
    assert (status, len(said)) == (2, 1)
    assert "no image has a pdq" in said[0]


def jpeg(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_copies_are_near_and_a_reduced_picture_is_hashed_as_the_whole_is(name):
    pdqhash = pytest.importorskip("pdqhash")
    image = Image.fromarray(getattr(data, name)()).convert("RGB").resize((2000, 1500))
    large = jpeg(image, 90)
    own = bits(pdq.take(decode(large, max_pixels=10**8, reduce_to=pdq.SIDE))["pdq"])
    whole, _ = pdqhash.compute(np.asarray(decode(large, max_pixels=10**8)))
    assert (own != whole).sum() <= 16
    copy = decode(jpeg(image.resize((500, 375)), 60), max_pixels=10**8)
    assert (own != bits(pdq.take(copy)["pdq"])).sum() <= 16
    other = Image.fromarray(data.moon()).convert("RGB")
    assert (own != bits(pdq.take(other)["pdq"])).sum() > 80
    assert pdq.take(Image.new("RGB", (9, 9), "red")) == {"pdq": None}


def test_a_run_hashes_once_and_another_distance_reads_nothing(small_run, monkeypatch):
    run, taken = small_run, []

    def take(image):
        """Stand in for pdqhash, which may not be installed: the corner's colour and zeros."""
        taken.append(image)
        return {"pdq": bytes([*image.getpixel((5, 5)), *[0] * 29]).hex()}

    monkeypatch.setattr(plan, "require_pdqhash", lambda: None)
    monkeypatch.setitem(LOOKS, "pdq", replace(pdq.LOOK, take=take))
    bad = run.root / "bad.txt"
    bad.write_text("00" * 32)
    before = {name for name in files_of(run.work) if name.startswith(("facts/", "vectors/"))}

    def decisions(distance, out):
        lists = f"--set=lists={{bad: {{kind: pdq, path: {bad}, distance: {distance}}}}}"
        out = run.root / out
        words = f"--crawl={run.data / 'crawl/00000.tar'}", "--set=report.pictures=false"
        status, said = run("run", lists, *words, f"--out={out}")
        assert status == 0, said
        return pq.read_table(out / "reports/images.parquet").to_pylist()

    rows = decisions(11, "one")
    assert len(taken) == len(rows) == 10
    more = decisions(12, "two")
    assert len(taken) == 10
    for table, distance in ((rows, 11), (more, 12)):
        for row in table:
            near = bits(row["pdq"]).sum() <= distance
            assert (row["decision"] == "unsafe") == near
            said = f"pdq is within {distance} bits of one on the list bad"
            assert (row["reason"] == said) == near
    counted = [sum(row["decision"] == "unsafe" for row in table) for table in (rows, more)]
    assert 0 < counted[0] < counted[1] < 10
    after = {name for name in files_of(run.work) if name.startswith(("facts/", "vectors/"))}
    assert after == before
    status, said = run(
        *("remove", run.root / "one", f"--list={bad}", "--kind=pdq", "--distance=12"),
        f"--work={run.work}",
    )
    assert status == 0
    assert said[-2].startswith(f"{counted[1]} images")
    assert json.loads((run.root / "one/reports/funnel.json").read_text())["removed"]["images"]
