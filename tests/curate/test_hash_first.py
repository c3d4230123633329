"""Of images that share a hash only the best is embedded: the others are lent its vector, and said to be."""

import json
from dataclasses import replace

import imagehash
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from made_collection import files_of
from pictures import encoded, picture, write_tar
from PIL import Image
from test_hashes import CONFIG, detailed, run

from curate.catalogue.part_files import FACTS, LENT, VALID, VECTORS
from curate.catalogue.write import Judged
from curate.cli import main
from curate.dedup.hash_first import embed_by_hash, known_lenders
from curate.dedup.near import DedupSettings
from curate.embedding import embed as embedding
from curate.embedding.embed import Forwards
from curate.embedding.lent_vectors import STAGE
from curate.embedding.request import EmbedRequest, EmbedSettings
from curate.embedding.stage import embed, set_aside_parts
from curate.execution.session import open_runner
from curate.filters.quality import QualitySettings
from curate.removal.work import units_with
from curate.stage import EngineSettings
from shared.datasets.dataset import DatasetSettings, list_parts
from shared.embedders.settings import EmbedderSettings

DESCRIPTORS = (
    EmbedderSettings(kind="descriptor", batch_size=2),
    EmbedderSettings(kind="descriptor", decode="full", batch_size=2),
)
HASH = DedupSettings(hash="phash")
NOTHING = Judged()
FLAT = encoded(Image.new("RGB", (64, 64), (9, 99, 99)), "PNG")


def shown(number, side):
    return encoded(detailed(number, side), "PNG")


@pytest.fixture
def crawl(tmp_path):
    """Three tars that share pictures of several sizes, and of one a copy; one has the bytes of another."""
    images = {
        "b": {
            "0": shown(0, 64),
            "1": shown(1, 64),
            "2": shown(2, 192),
            "flat": FLAT,
            "bad": FLAT[:40],
        },
        "c": {"0": shown(0, 192), "1": shown(1, 64), "3": shown(3, 96), "flat": FLAT},
        "d": {"0": shown(0, 128), "2": shown(2, 64), "4": shown(4, 64)},
    }
    for name, members in images.items():
        named = {f"{key}.png": data for key, data in members.items()}
        write_tar(tmp_path / "crawl" / f"{name}.tar", named)
    (tmp_path / "crawl" / "e.tar").write_bytes((tmp_path / "crawl" / "d.tar").read_bytes())
    return tmp_path / "crawl"


@pytest.fixture
def seen(monkeypatch):
    """By embedder, what is handed to it."""
    seen, plain = ([], []), Forwards.embed

    def count(self, place, batch):
        seen[place].extend(image.tobytes() for image in batch)
        return plain(self, place, batch)

    monkeypatch.setattr(Forwards, "embed", count)
    return seen


def made(crawl, work, once="hash", by=DESCRIPTORS, judged=NOTHING):
    """Embed a crawl; return what was embedded."""
    parts = list_parts("crawl", DatasetSettings(path=str(crawl)))
    asked = EmbedRequest(work, EmbedSettings(once=once), by, (), 1, ("phash", "luminance"))
    with open_runner(work, EngineSettings(), "inline") as runner, runner.at_work("embed"):
        if once != "hash":
            return embed(runner, "crawl", "crawl", parts, asked)
        done = embed_by_hash(runner, "crawl", parts, asked, HASH, judged)
        units = {
            str(unit.relative_to(work)) for x in done.contents for unit in done.request.units(x)
        }
        assert units <= set(runner.used)
        return done


def files(done):
    """Return the files of all units, by where they lie."""
    units = {unit for content in done.contents for unit in done.request.units(content)}
    return {str(unit.relative_to(done.request.work)): files_of(unit) for unit in units}


def images(done):
    """Return by key: facts, and by each embedder vector, whether it has one, and whether it is lent."""
    found = {}
    for part, content in zip(done.parts, done.contents, strict=True):
        facts = pq.read_table(done.request.facts / content / FACTS).to_pylist()
        arrays = []
        for each in done.request.embedders:
            unit = done.request.vectors(each) / content
            lent = np.load(unit / LENT) if done.request.lenders else np.zeros(len(facts), bool)
            arrays.append((np.load(unit / VECTORS), np.load(unit / VALID), lent))
        for row, fact in enumerate(facts):
            found[f"{part.name}/{fact['name']}"] = (fact, [[x[row] for x in a] for a in arrays])
    return found


def best_of_hash(plain, crawl):
    """Return by key whose vector an image has, by the definition: most pixels, most bytes, first key."""
    import io
    import tarfile

    hashes = {}
    for tar in sorted(crawl.glob("*.tar")):
        with tarfile.open(tar) as file:
            for member in file.getmembers():
                key = f"{tar.stem}/{member.name.partition('.')[0]}"
                if not plain[key][0]["problem"]:
                    image = Image.open(io.BytesIO(file.extractfile(member).read())).convert("RGB")
                    flat = len(image.getcolors(1 << 20)) == 1
                    hashes[key] = plain[key][0]["sha256"] if flat else str(imagehash.phash(image))

    def goodness(key):
        fact = plain[key][0]
        return -fact["width"] * fact["height"], -fact["bytes"], key

    return {
        key: min((other for other, x in hashes.items() if x == own), key=goodness)
        for key, own in hashes.items()
    }


def test_images_of_a_hash_have_the_vector_of_the_best_and_only_that_is_embedded(
    tmp_path, crawl, seen
):
    plain = images(made(crawl, tmp_path / "plain", once=False))
    for each in seen:
        each.clear()
    done = made(crawl, tmp_path / "work")
    found, best = images(done), best_of_hash(plain, crawl)
    assert len(set(best.values())) < len({plain[key][0]["sha256"] for key in best})
    assert [len(each) for each in seen] == [len(set(best.values()))] * 2
    lent = 0
    for key, (fact, by_embedder) in found.items():
        assert fact == plain[key][0]  # its own, whoever lends to it
        is_lent = key in best and fact["sha256"] != plain[best[key]][0]["sha256"]
        lent += is_lent
        for place, (vector, valid, without) in enumerate(by_embedder):
            assert valid == (key in best)
            assert without == (is_lent or key not in best)
            expected = plain[best[key]][1][place][0] if key in best else np.zeros_like(vector)
            np.testing.assert_array_equal(vector, expected)
    assert done.lent == {"images": len(found), "lent": lent}
    assert lent >= 4
    used = {unit.parent for x in done.contents for unit in done.request.units(x)}
    kept = {unit.parent for unit in (tmp_path / "work").glob("vectors/*/*")}
    assert kept <= used  # what only the lent vectors were made of is gone


def test_units_that_hold_lent_vectors_never_pass_for_those_that_hold_none(tmp_path, crawl):
    lent, plain = (files(made(crawl, tmp_path / "work", once=once)) for once in ("hash", False))
    shared = lent.keys() & plain.keys()
    assert {name.split("/")[0] for name in shared} == {"facts", "phash", "luminance"}
    fresh = files(made(crawl, tmp_path / "fresh", once=False))
    assert plain == fresh
    assert files(made(crawl, tmp_path / "fresh")) == lent  # after the other


def test_settings_that_change_no_lender_change_no_unit_and_what_is_decided_lends_nothing(
    tmp_path, crawl
):
    done, looser, stricter = (
        made(crawl, tmp_path / "work", judged=Judged(QualitySettings(min_side=side)))
        for side in (16, 32, 100)
    )
    assert files(looser) == files(done)
    lent = {key for key, (_, each) in images(stricter).items() if each[0][1] and each[0][2]}
    assert lent == {"d/0", "e/0"}  # what is smaller is embedded, and lends nothing


@pytest.mark.parametrize("batches", [1, 5])
def test_a_run_that_was_cut_off_ends_with_the_same_bytes(
    tmp_path, crawl, seen, monkeypatch, batches
):
    expected = files(made(crawl, tmp_path / "whole"))
    whole = len(seen[0])
    left, counting = [batches], Forwards.embed

    def die(self, place, batch):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return counting(self, place, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Forwards, "embed", die)
        with pytest.raises(KeyboardInterrupt):
            made(crawl, tmp_path / "work")
    assert files(made(crawl, tmp_path / "work")) == expected
    assert len(seen[0]) <= 2 * whole + 4  # of the part that was at work


def test_a_grown_crawl_embeds_what_is_new_and_equals_a_whole_one(tmp_path, crawl, seen):
    made(crawl, tmp_path / "work")
    for each in seen:
        each.clear()
    new = {"4large": shown(4, 192), "0small": shown(0, 96), "9": shown(9, 64)}
    write_tar(crawl / "a.tar", {f"{key}.png": data for key, data in new.items()})
    grown = files(made(crawl, tmp_path / "work"))
    assert [len(each) for each in seen] == [2, 2]  # 4large lends from now on, and 9 stands alone
    assert grown == files(made(crawl, tmp_path / "fresh"))
    for each in seen:
        each.clear()
    (crawl / "a.tar").unlink()
    made(crawl, tmp_path / "work")
    assert seen == ([], [])


def test_a_part_that_changed_and_another_embedder_embed_only_what_is_new(tmp_path, crawl, seen):
    made(crawl, tmp_path / "work", by=DESCRIPTORS[:1])
    for each in seen:
        each.clear()
    members = {"0.png": shown(0, 192), "3.png": shown(3, 96), "5.png": shown(5, 64)}
    write_tar(crawl / "c.tar", members)
    made(crawl, tmp_path / "work", by=DESCRIPTORS[:1])
    assert [len(each) for each in seen] == [1, 0]
    done = made(crawl, tmp_path / "work")
    assert [len(each) for each in seen] == [1, 7]
    assert files(done) == files(made(crawl, tmp_path / "fresh"))


def test_a_part_that_cannot_be_embedded_is_set_aside_and_lends_nothing(
    tmp_path, crawl, monkeypatch
):
    make = embedding._make

    def fail(state, copy, request, *rest):
        if request.own and "c.tar" in copy.part.paths[0]:
            raise ValueError("it embeds nothing")
        make(state, copy, request, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "_make", fail)
        done = made(crawl, tmp_path / "work")
        assert [each.part for each in done.aside] == ["c"]
        assert [part.name for part in done.parts] == ["b", "d", "e"]
        again = made(crawl, tmp_path / "work")
        assert [each.line for each in again.aside] == [each.line for each in done.aside]
        asked = replace(done.request, lenders="", lenders_at="", earlier=())
        parts = list_parts("crawl", DatasetSettings(path=str(crawl)))
        known, counts = known_lenders("crawl", parts, asked, HASH, NOTHING)
        assert (known.lenders, counts) == (done.request.lenders, done.lent)
        assert len(set_aside_parts(asked, parts)) == 1  # which --retry parts takes up again
    whole = tmp_path / "without"
    whole.mkdir()
    for name in "bde":
        (whole / f"{name}.tar").write_bytes((crawl / f"{name}.tar").read_bytes())
    assert files(done) == files(made(whole, tmp_path / "fresh"))


def test_of_copies_that_all_get_no_vector_the_third_round_embeds_each(tmp_path, crawl, monkeypatch):
    plain, prepare = Forwards.embed, embedding.preparation(DESCRIPTORS[1]).prepare
    sides = range(64, 193, 16)
    write_tar(crawl / "f.tar", {f"{side}.png": shown(0, side) for side in sides})
    failing = {prepare(detailed(0, side)).tobytes() for side in sides}
    batches = []

    def fail(self, place, batch):
        vectors = plain(self, place, batch)
        if place == 1:
            batches.extend(image.tobytes() for image in batch)
            vectors[[image.tobytes() in failing for image in batch]] = np.nan
        return vectors

    monkeypatch.setattr(Forwards, "embed", fail)
    done = made(crawl, tmp_path / "work")
    assert len(list((tmp_path / "work" / STAGE).iterdir())) == 3
    once = [image for image in batches if image not in failing]
    assert len(once) == len(set(once))
    found = images(done)
    assert not any(found[f"f/{side}"][1][1][1] for side in sides)
    asked = replace(done.request, lenders="", lenders_at="", earlier=())
    known, counts = known_lenders("crawl", done.parts, asked, HASH, NOTHING)
    assert (known.lenders, counts) == (done.request.lenders, done.lent)


def test_where_the_best_gets_no_vector_the_next_best_lends(tmp_path, crawl, monkeypatch):
    plain, prepare = Forwards.embed, embedding.preparation(DESCRIPTORS[1]).prepare
    best = [
        prepare(detailed(number, side)).tobytes() for number, side in ((0, 192), (0, 128), (2, 192))
    ]

    def fail(self, place, batch):
        vectors = plain(self, place, batch)
        failing = np.array([place == 1 and image.tobytes() in best for image in batch])
        return np.where(failing[:, None], np.nan, vectors)

    monkeypatch.setattr(Forwards, "embed", fail)
    done = made(crawl, tmp_path / "work")
    assert files(made(crawl, tmp_path / "work")) == files(done)
    found, own = images(done), images(made(crawl, tmp_path / "plain", once=False))
    without = {key for key, (_, arrays) in own.items() if not arrays[1][1]}
    assert without == {"b/2", "c/0", "d/0", "e/0", "b/bad"}
    for key, (_, arrays) in found.items():
        for place, (vector, valid, lent) in enumerate(arrays):
            assert valid == (key != "b/bad" if place == 0 else key not in without)
            if not lent:
                assert (vector == own[key][1][place][0]).all()
    assert not any(found[key][1][1][2] for key in ("b/0", "d/2"))  # which have nobody to lend to
    asked = replace(done.request, lenders="", lenders_at="", earlier=())
    known, counts = known_lenders("crawl", done.parts, asked, HASH, NOTHING)
    assert (known.lenders, counts) == (done.request.lenders, done.lent)
    del best[1:]
    found = images(made(crawl, tmp_path / "one"))
    for vector, valid, lent in found["b/0"][1]:
        assert valid
        assert lent
        assert (vector == own["d/0"][1][0][0]).all()
        assert (vector != own["c/0"][1][0][0]).any()
    assert not found["c/0"][1][1][1]
    assert found["d/0"][1][1][1]


def test_what_is_removed_goes_where_it_was_lent_to(tmp_path, crawl):
    done = made(crawl, tmp_path / "work")
    fact, _ = images(done)["c/0"]
    held = {unit.name for unit in units_with(tmp_path / "work", [fact["sha256"]])}
    assert held >= set(done.contents)  # b, d and e have pictures of its hash
    fact, _ = images(done)["c/3"]
    units = units_with(tmp_path / "work", [fact["sha256"]])
    assert {unit.parent.parent.name for unit in units} == {"vectors"}
    [content] = {unit.name for unit in units}
    assert content == dict(zip((x.name for x in done.parts), done.contents, strict=True))["c"]


def test_a_run_says_what_it_has_not_embedded(tmp_path, crawl, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, number in (("seed", 1_000), ("held", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(encoded(picture(number), "PNG"))
    (tmp_path / "held" / "0.png").write_bytes(shown(0, 192))
    (tmp_path / "pipelines.yaml").write_text(CONFIG.replace("ROOT", str(tmp_path)))
    words = ["--set=dedup.hash=phash", "--set=embed.once=hash", f"--holdout={tmp_path}/held"]
    _, said = run(tmp_path, "out", *words, "--dry-run")
    assert "once for each pHash, after a pass that decodes all parts" in said
    out, said = run(tmp_path, "out", *words)
    rows, copies = {}, {}
    for row in pq.read_table(out / "reports" / "images.parquet").to_pylist():
        rows[row["key"]] = row
    for row in pq.read_table(out / "reports" / "duplicates.parquet").to_pylist():
        copies[row["key"]] = row
    lent = {key for key, row in rows.items() if row["lent"]}
    of_groups = pq.read_table(out / "reports" / "groups.parquet").to_pylist()
    members = {
        each["group"]: [key for key in rows if rows[key]["group"] == each["group"]]
        for each in of_groups
    }
    told = {each["group"]: each["lent"] for each in of_groups}
    assert told == {group: len(lent & set(keys)) for group, keys in members.items()}
    assert sum(told.values()) == len(lent)
    assert {"d/2", "e/2"} <= lent
    for key in lent:
        row = rows[key]
        assert row["reason"].endswith(", by a lent vector")
        # of the image that lends, which stands for it
        assert copies[key]["similarity"] == pytest.approx(1, abs=1e-6)
        if row["decision"] == "duplicate":
            assert row["duplicate_similarity"] == pytest.approx(1, abs=1e-6)
        else:
            assert row["duplicate_similarity"] is None
        assert copies[key]["method"] == "phash"
        if row["decision"] == "duplicate":
            assert row["reason"] == f"the same pHash as {row['duplicate_of']}, by a lent vector"
    assert not any(
        rows[key]["lent"] for key in ("b/2", "c/0", "b/1", "c/1", "b/flat", "c/flat", "b/bad")
    )
    assert {rows[key]["decision"] for key in ("b/0", "c/0", "d/0")} == {"holdout"}
    funnel = json.loads((out / "reports" / "funnel.json").read_text())
    assert funnel["dedup_hash"]["lent"] == len(lent)
    assert f"{len(lent)} images not embedded" in said
    assert f"{len(lent)} images were not embedded" in (out / "datasheet.md").read_text()
    for key in ("d/2", "d/0"):
        told = CliRunner().invoke(main, ["explain", str(out), key])
        assert told.exit_code == 0, told.output
        assert "by a lent vector" in told.output
    _, said = run(tmp_path, "out", *words, "--dry-run")
    assert f"once for each pHash: {len(lent)} of {len(rows)} images are not embedded" in said
    assert "4 embedded, 0 to do" in said


def test_a_hash_that_is_not_named_is_one_line(tmp_path, crawl, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed").mkdir()
    (tmp_path / "pipelines.yaml").write_text(CONFIG.replace("ROOT", str(tmp_path)))
    _, said = run(tmp_path, "never", "--set=embed.once=hash", status=2)
    assert said.count("\n") == 1
    assert "dedup.hash names no hash: set it to pca or phash" in said
