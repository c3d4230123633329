"""A catalogue knows all images by number and in the order of their keys, whatever parts they are in."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_collection import Made, files_of, made_collection, made_part, write_part

from curate.catalogue import collection as module
from curate.catalogue.collection import Collection
from curate.catalogue.write import Judged, catalogue
from curate.filters.decisions import CODE, OPEN
from curate.filters.quality import QualitySettings
from curate.filters.scores import FilterSettings
from shared.errors import LvdError

VECTOR = (1.0, 0.0, 0.0, 0.0)
QUALITY = QualitySettings()


def images_of(keys, **options):
    return [Made(key, VECTOR, **options) for key in keys]


def keys_of(collection):
    return collection.keys(collection.order)


def check_order(collection, images):
    """Check that every image has one number, a place in key order, and its own facts and vector."""
    expected = sorted(images, key=lambda image: image.key.encode())
    everyone = np.array(collection.order)
    assert sorted(everyone.tolist()) == list(range(len(images)))
    parts = [collection.parts[part].name for part in collection.part_of(np.arange(len(images)))]
    assert parts == sorted(parts, key=lambda name: name + "/")
    np.testing.assert_array_equal(collection.place[everyone], np.arange(len(images)))
    assert keys_of(collection) == [image.key for image in expected]
    facts = collection.facts(everyone)
    assert facts["key"].to_pylist() == keys_of(collection)
    assert facts["sha256"].to_pylist() == [image.sha256 for image in expected]
    vectors = collection.vectors(everyone)
    np.testing.assert_array_equal(vectors, np.array([i.vector for i in expected], np.float16))


def numbered_vectors(keys):
    rng = np.random.default_rng(len(keys))
    return [Made(key, vector) for key, vector in zip(keys, rng.random((len(keys), 4)), strict=True)]


NAMES = st.sampled_from(["a", "a-b", "a.b", "a/b", "a/b/c", "a0", "aa", "b", "a b", "a/é", "ä"])
LEAVES = st.sampled_from(["0", "1", "b", "b/0", "c-1", "é", "-", "~", "x.jpg", "🙂"])


DASHES = {"a", "a-b", "a.b", "a/b"}


@settings(max_examples=25, deadline=None)
@example(DASHES, [(name, "0") for name in sorted(DASHES)], set(), 0, 2)
@given(
    names=st.sets(NAMES, min_size=1),
    leaves=st.lists(st.tuples(NAMES, LEAVES), max_size=30),
    loose=st.sets(st.sampled_from(["a", "a/z.jpg", "b.jpg", "folder-00000x", "zz/1.jpg"])),
    folders=st.integers(0, 3),
    block=st.integers(1, 7),
)
def test_numbers_follow_keys_whatever_the_parts_are_called(
    tmp_path_factory, names, leaves, loose, folders, block
):
    parts = [made_part(name) for name in sorted(names)]
    parts += [made_part(f"folder-{number:05d}", "folder") for number in range(folders)]
    keys = {f"{part}/{leaf}" for part, leaf in leaves if part in names}
    keys |= loose if folders else set()
    images = numbered_vectors(sorted(keys))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "KEYS_TOGETHER", block)
        made = made_collection(tmp_path_factory.mktemp("work"), images, parts=parts)
        if images:
            check_order(made, images)
        for place, key in enumerate(keys_of(made)):
            assert made.find(key) == made.order[place]
        assert made.find("no such key") is None


def test_parts_in_any_order_give_the_same_bytes(tmp_path):
    images = numbered_vectors([f"{part}/{leaf}" for part in ("a", "b", "a/c") for leaf in range(9)])
    first = made_collection(tmp_path / "one", images)
    shuffled = sorted(images, key=lambda image: image.sha256)
    outputs = [
        write_part(
            tmp_path / "two",
            name,
            [image for image in shuffled if image.key.rpartition("/")[0] == name],
            f"{name}/",
        )
        for name in ("a", "b", "a/c")
    ]
    home = tmp_path / "two" / "catalogue" / "crawl" / "0000"
    home.mkdir(parents=True)
    outputs.reverse()
    catalogue(outputs, tmp_path / "two", Judged(), out=home)
    found, expected = files_of(home), files_of(first.folder)
    for files in (found, expected):  # where the units lie is another matter
        del files["parts.json"]
    assert found == expected


def test_a_key_in_two_parts_is_refused_by_name(tmp_path):
    outputs = [
        write_part(tmp_path, name, images_of(["a/b/0"]), f"{name}/") for name in ("a", "a/b")
    ]
    with pytest.raises(LvdError, match=r"'a/b/0'.*'a'"):
        catalogue(outputs, tmp_path, Judged(), out=tmp_path)


def test_parts_without_images_change_nothing(tmp_path):
    images = numbered_vectors(["b/1", "b/2"])
    parts = [made_part(name) for name in ("a", "b", "c")]
    collection = made_collection(tmp_path, images, parts=parts)
    check_order(collection, images)
    assert [part.name for part in collection.parts] == ["a", "b", "c"]
    assert collection.dim == 4


def test_a_collection_without_images_is_empty(tmp_path):
    collection = made_collection(tmp_path, [], parts=[made_part("a")])
    assert len(collection) == 0
    assert collection.usable.tolist() == collection.blocks() == []
    assert collection.vectors(np.empty(0, int)).shape == (0, 4)
    assert len(collection.facts(np.empty(0, int))) == 0
    assert collection.find("a/0") is None


def test_facts_and_vectors_come_in_the_order_asked_for(tmp_path):
    images = numbered_vectors([f"{part}/{row}" for part in "cab" for row in range(5)])
    collection = made_collection(tmp_path, images)
    asked = np.random.default_rng(0).permutation(15)[:11]
    facts = collection.facts(asked, ["key", "bytes"])
    assert facts["key"].to_pylist() == collection.keys(asked)
    assert facts["part"].to_pylist() == [key[0] for key in collection.keys(asked)]
    everything = collection.vectors(np.arange(15))
    np.testing.assert_array_equal(collection.vectors(asked), everything[asked])


def test_exact_copies_stand_for_one_content_across_parts(tmp_path):
    images = [
        Made("c/0", VECTOR, content="x"),
        Made("b/0", VECTOR, content="y"),
        Made("a/0", VECTOR, content="x", contrast=0.0),
        Made("b/1", VECTOR, content="x"),
        Made("b/2", VECTOR, content="x", problem="truncated"),
    ]
    collection = made_collection(tmp_path, images, quality=QUALITY)
    assert keys_of(collection) == ["a/0", "b/0", "b/1", "b/2", "c/0"]
    assert collection.canonical.tolist() == [-1, 1, 2, -1, 2]
    assert collection.usable.tolist() == [1, 2]
    assert collection.decision.tolist() == [
        CODE["low_quality"],
        OPEN,
        OPEN,
        CODE["corrupt"],
        OPEN,
    ]


def test_seeds_are_taken_as_they_are(tmp_path):
    odd = [
        Made("s/0", VECTOR, (1, 900), contrast=0.0),
        Made("s/1", None),
        Made("s/2", None, problem="x"),
    ]
    collection = made_collection(tmp_path, odd, quality=None)
    assert collection.decision.tolist() == [OPEN, CODE["low_quality"], CODE["corrupt"]]


def test_a_filter_on_a_column_that_is_nowhere_names_it(tmp_path):
    images = images_of(["p/0", "p/1"])
    with pytest.raises(LvdError, match=r"'punsafe'.*drop the filter"):
        made_collection(tmp_path, images, filters=[FilterSettings(column="punsafe", max=0.5)])


def test_a_missing_score_is_unsafe(tmp_path):
    images = images_of(["p/0", "p/1", "q/2", "q/3"])
    scores = [0.5, 0.6, None, float("nan")]
    images = [
        replace(image, scores={"punsafe": score})
        for image, score in zip(images, scores, strict=True)
    ]
    filters = [FilterSettings(column="punsafe", max=0.5)]
    collection = made_collection(tmp_path, images, quality=QUALITY, filters=filters)
    assert collection.decision.tolist() == [OPEN] + 3 * [CODE["unsafe"]]


def test_blocks_cover_all_numbers_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_BLOCK", 4)
    collection = made_collection(tmp_path, images_of([f"p/{row}" for row in range(10)]))
    assert collection.block == 16
    monkeypatch.setattr(module, "block_size", lambda images: 4)
    assert collection.blocks() == [(0, 4), (4, 8), (8, 10)]


def test_a_collection_travels_as_its_folder(tmp_path):
    collection = made_collection(tmp_path, numbered_vectors(["p/0", "p/1"]))
    assert len(collection) == 2
    data = pickle.dumps(collection)
    assert len(data) < 1000
    other = pickle.loads(data)
    assert isinstance(other, Collection)
    assert keys_of(other) == ["p/0", "p/1"]
